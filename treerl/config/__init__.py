"""Every setting of a run, with its default and meaning: pydantic models, frozen, unknown keys refused.

One file a group of sections; reading recipe files is in treerl.recipe. Nothing heavy is imported here.
"""

from treerl.config.credit import (
    AdvantageSettings,
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
    "CureSearch",
    "CutSettings",
    "DatasetTask",
    "DeepSearchSearch",
    "EngineSettings",
    "EntropyTopK",
    "EntropyWindow",
    "EvalSettings",
    "FileTask",
    "FlatSearch",
    "FormatPart",
    "GymTask",
    "LoraSettings",
    "LossSettings",
    "PolicySettings",
    "PromptSettings",
    "RandomCut",
    "Recipe",
    "ReplaySettings",
    "RunSettings",
    "SamplerSettings",
    "SearchSection",
    "SearchSettings",
    "TaskSettings",
    "TransformersSettings",
    "UpdateSettings",
    "VerifierSettings",
    "VllmSettings",
]
