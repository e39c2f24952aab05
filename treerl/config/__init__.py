"""Every setting of a run, with its default and meaning: pydantic models, frozen, unknown keys refused.

One file a group of sections; reading recipe files is in treerl.recipe. Nothing heavy is imported here.
"""

from treerl.config.credit import (
    AdvantageSettings,
)
from treerl.config.curriculum import (
    CurriculumSettings,
    DriveCurriculum,
    RoundsCurriculum,
    TaskOrder,
    VarianceCurriculum,
)
from treerl.config.policy import (
    AnySampler,
    EngineSettings,
    LoraSettings,
    PolicySettings,
    SamplerSettings,
    TransformersSettings,
    VllmSettings,
)
from treerl.config.recipe import (
    Recipe,
)
from treerl.config.replay import (
    CollapseSettings,
    ImitateSettings,
    ReadSettings,
    ReplaySettings,
)
from treerl.config.run import (
    EvalSettings,
    RunSettings,
)
from treerl.config.search import (
    CureSearch,
    CutSettings,
    DeepSearchSearch,
    EntropyTopK,
    EntropyWindow,
    FlatSearch,
    RandomCut,
    SearchSection,
    SearchSettings,
)
from treerl.config.task import (
    ChainTask,
    DatasetTask,
    FileTask,
    GymTask,
    PromptSettings,
    TaskSettings,
)
from treerl.config.update import (
    LossSettings,
    UpdateSettings,
)
from treerl.config.verifier import (
    FormatPart,
    VerifierSettings,
)

__all__ = [
    "AdvantageSettings",
    "AnySampler",
    "ChainTask",
    "CollapseSettings",
    "CureSearch",
    "CurriculumSettings",
    "CutSettings",
    "DatasetTask",
    "DeepSearchSearch",
    "DriveCurriculum",
    "EngineSettings",
    "EntropyTopK",
    "EntropyWindow",
    "EvalSettings",
    "FileTask",
    "FlatSearch",
    "FormatPart",
    "GymTask",
    "ImitateSettings",
    "LoraSettings",
    "LossSettings",
    "PolicySettings",
    "PromptSettings",
    "RandomCut",
    "ReadSettings",
    "Recipe",
    "ReplaySettings",
    "RoundsCurriculum",
    "RunSettings",
    "SamplerSettings",
    "SearchSection",
    "SearchSettings",
    "TaskOrder",
    "TaskSettings",
    "TransformersSettings",
    "UpdateSettings",
    "VarianceCurriculum",
    "VerifierSettings",
    "VllmSettings",
]
