"""Recipes: what is accepted, and that a refusal names key, value and remedy."""

import pytest

from treerl.config import LossSettings, Recipe
from treerl.errors import ConfigError
from treerl.recipe import FOREIGN_NAMES, load_recipe, parse_recipe, shipped_recipes


def refusal(data):
    with pytest.raises(ConfigError) as caught:
        parse_recipe(data)
    return str(caught.value)


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_valid(name):
    assert load_recipe(name).run.name == f"{name}-seed0"


def test_unknown_key_is_named():
    assert "search.width = 3: unknown key" in refusal({"search": {"kind": "cure", "width": 3}})


def test_foreign_spelling_is_refused_with_ours():
    message = refusal({"loss": {"epsilon_high": 0.28}})
    assert "loss.epsilon_high = 0.28" in message
    assert "loss.clip_ratio_high" in message


def test_every_foreign_name_points_to_a_key_that_exists():
    fields = set(Recipe.model_fields)
    for target in FOREIGN_NAMES.values():
        assert target.split(".")[0].split(" ")[0] in fields, target


def test_unknown_kind_lists_the_kinds():
    message = refusal({"search": {"kind": "puct"}})
    assert "puct" in message
    assert "'cure'" in message


def test_bad_number_names_key_and_value():
    assert "update.lr = 0: Input should be greater than 0" in refusal({"update": {"lr": 0}})


def test_generations_must_divide():
    message = refusal({"search": {"kind": "cure", "num_generations": 7, "num_branches": 3}})
    assert "num_generations = 7" in message
    assert "4" in message


def test_importance_weights_refuse_a_truncated_distribution():
    message = refusal({"sampler": {"top_p": 0.9}, "loss": {"rollout_is": "token"}})
    assert "sampler.top_p = 1" in message


@pytest.mark.parametrize(
    "replay", [{"max_cached": 1}, {"collapse": {"rows": 1}}, {"imitate": {"rows": 1}}]
)
def test_weights_of_cached_rows_refuse_a_truncated_distribution(replay):
    given = {"sampler": {"top_p": 0.9}, "loss": {"rollout_is": "none"}, "replay": replay}
    assert 'loss.replay_is = "none"' in refusal(given)
    given["loss"]["replay_is"] = "none"
    assert parse_recipe(given, source="test").replay.trains_on_cached


def test_the_samplers_logprobs_as_denominators_refuse_a_truncated_distribution():
    message = refusal(
        {
            "sampler": {"top_k": 20},
            "loss": {"rollout_is": "none"},
            "update": {"old_logprobs": "sampler"},
        }
    )
    assert "sampler.top_k = 0" in message
    assert 'old_logprobs = "recompute"' in message


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ({"rollout_is_threshold": "0.5_5.0"}, 'set rollout_is_mode = "mask"'),
        ({"rollout_is_threshold": "0.5-5"}, 'neither a number nor a band "low_high"'),
        ({"rollout_is_mode": "mask", "rollout_is_threshold": "2_5"}, "1 must lie within it"),
        ({"rollout_is_mode": "mask", "rollout_is_threshold": 0.5}, "1 must lie within it"),
    ],
)
def test_thresholds_that_cannot_be_are_refused(loss, told):
    assert told in refusal({"loss": loss})


def test_a_band_of_importance_weights_is_read():
    recipe = parse_recipe(
        {"loss": {"rollout_is_mode": "mask", "rollout_is_threshold": "0.5_5.0"}}, source="test"
    )
    assert recipe.loss.rollout_is_band == (0.5, 5.0)
    assert LossSettings().rollout_is_band == (0.0, 2.0)
    assert LossSettings().weighs_in_loss
    assert not recipe.loss.weighs_in_loss


def test_cached_solutions_must_leave_room_for_fresh_ones():
    message = refusal(
        {"search": {"kind": "flat", "num_generations": 4}, "replay": {"max_cached": 4}}
    )
    assert "max_cached = 4" in message


def test_overrides_are_toml_values(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('seed = 3\n[search]\nkind = "flat"\n')
    recipe = load_recipe(
        str(path),
        ["search.num_generations=4", "sampler.temperature=0.7", "run.name=abc", "eval.k=[1,2]"],
    )
    assert recipe.search.num_generations == 4
    assert recipe.sampler.temperature == 0.7
    assert recipe.run.name == "abc"
    assert recipe.eval.k == (1, 2)
    assert recipe.seed == 3


@pytest.mark.parametrize("override", ["search.num_generations", "=3", "seed.x=1"])
def test_malformed_overrides_are_refused(override):
    with pytest.raises(ConfigError):
        load_recipe("quickstart", [override])


def test_broken_toml_names_the_file(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("seed = \n")
    with pytest.raises(ConfigError, match=r"broken\.toml: not valid TOML"):
        load_recipe(str(path))


def test_missing_recipe_lists_the_shipped_ones():
    with pytest.raises(ConfigError, match="quickstart"):
        load_recipe("nonsense")


def test_settings_of_the_other_sampler_are_refused_with_the_kind_they_go_with():
    message = refusal({"sampler": {"vllm": {"block_size": 32}}})
    assert "sampler.vllm = {'block_size': 32}" in message
    assert 'sampler.kind = "vllm"' in message


def test_unknown_key_of_the_engine_is_named_without_the_kind():
    message = refusal({"sampler": {"kind": "vllm", "vllm": {"max_num_seqs": 3}}})
    assert (
        "sampler.vllm.max_num_seqs = 3: unknown key; treerl's name is sampler.max_batch" in message
    )


def test_unknown_sampler_lists_the_kinds():
    assert '"transformers" or "vllm"' in refusal({"sampler": {"kind": "sglang"}})


def test_samplers_share_their_keys():
    shared = {"temperature": 0.5, "max_batch": 7}
    for kind in ("transformers", "vllm"):
        sampler = parse_recipe({"sampler": {"kind": kind, **shared}}).sampler
        assert (sampler.kind, sampler.temperature, sampler.max_batch) == (kind, 0.5, 7)
    assert parse_recipe({"sampler": shared}).sampler.kind == "transformers"


@pytest.mark.parametrize("section", ["sampler", "eval"])
def test_temperatures_that_vllm_would_change_are_refused(section):
    data = {"sampler": {"kind": "vllm"}, section: {"temperature": 0.001}}
    data["sampler"]["kind"] = "vllm"
    message = refusal(data)
    assert f"{section}.temperature = 0.001" in message
    assert "0.01 to 2" in message
