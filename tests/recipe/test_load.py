"""From files and overrides to a recipe: extending, overriding, and knowing where each value comes from."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import trainrun.parts  # registers the built-in parts
from trainrun.errors import RecipeError
from trainrun.recipe.dump import dump
from trainrun.recipe.durations import Duration
from trainrun.recipe.load import Loaded, Source, find, load, shipped
from trainrun.recipe.registry import Part, Registry
from trainrun.recipe.registry import registry as builtin

MAIN = "data: digits\nmodel: tiny_convnet\nepochs: 2\nschedule: {lr: 0.1}\n"


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(text: str, name: str = "run.yaml") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")
    return name


def refused(file: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(file, overrides)
    return [str(m) for m in caught.value.mistakes]


def test_the_smallest_recipe_gets_the_schemas_defaults() -> None:
    recipe = load(written(MAIN, "my first run!.yaml")).recipe
    assert recipe.name == "my-first-run-"
    assert (recipe.batch_size, recipe.seed, recipe.clip, recipe.augment, recipe.ema) == (128, 0, None, [], None)
    assert (recipe.epochs, recipe.evaluate.every, recipe.checkpoint.every) == (Duration(2, "ep"), Duration(1, "ep"), Duration(60, "s"))
    assert (recipe.optimizer.name, recipe.optimizer.momentum, recipe.schedule.warmup.name, recipe.loss.name) == (
        "sgd",
        0.9,
        "none",
        "cross_entropy",
    )
    assert (recipe.data.resident, recipe.data.workers) == ("auto", None)


def test_an_open_family_resolves_any_name() -> None:
    node = load(written(MAIN), ["model=timm/resnet50d"]).recipe.model
    assert (node.name, node.weights) == ("timm/resnet50d", None)


# extends


def test_groups_merge_by_key_and_parts_are_replaced_whole() -> None:
    written(
        "schedule: {lr: 0.5, decay: cosine}\noptimizer: {name: sgd, momentum: 0.5, nesterov: true}\naugment: [horizontal_flip]\nseed: 3\n",
        "base.yaml",
    )
    recipe = load(written(f"extends: base.yaml\n{MAIN}optimizer: {{name: sgd, nesterov: true}}\naugment: [random_crop]\n")).recipe
    assert (recipe.schedule.lr, recipe.schedule.decay.name, recipe.seed) == (0.1, "cosine", 3)
    assert (recipe.optimizer.momentum, recipe.optimizer.nesterov) == (0.9, True)  # 0.9 is sgd's default: nothing leaks from the base
    assert [node.name for node in recipe.augment] == ["random_crop"]


def test_of_several_extended_files_the_later_wins() -> None:
    written("seed: 1\nbatch_size: 32\nearly_stopping: {patience: 3, min_delta: 0.1}\n", "a.yaml")
    written("seed: 2\nearly_stopping: {patience: 4}\n", "b.yaml")
    recipe = load(written(f"extends: [a.yaml, b.yaml]\n{MAIN}")).recipe
    assert (recipe.seed, recipe.batch_size) == (2, 32)
    assert recipe.early_stopping is not None
    assert (recipe.early_stopping.patience, recipe.early_stopping.min_delta) == (4, 0.1)


def test_null_takes_an_extended_group_away() -> None:
    written("ema: {decay: 0.9}\n", "a.yaml")
    assert load(written(f"extends: a.yaml\n{MAIN}ema: null\n")).recipe.ema is None


def test_a_path_is_relative_to_the_extending_file() -> None:
    written("seed: 9\n", "recipes/nine.yaml")
    loaded = load(written(f"extends: ../recipes/nine.yaml\n{MAIN}", "configs/x.yaml"))
    assert loaded.recipe.seed == 9
    assert str(loaded.sources[("seed",)]) == "recipes/nine.yaml:1 (extended)"


def test_name_and_description_of_an_extended_file_stay_there() -> None:
    written("name: base\ndescription: how to train\n", "a.yaml")
    recipe = load(written(f"extends: a.yaml\n{MAIN}")).recipe
    assert (recipe.name, recipe.description) == ("run", "")


def test_a_shipped_recipe_is_extended_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    written("seed: 5\n", "ship/recipes/classic.yaml")
    monkeypatch.setattr("trainrun.recipe.find.shipped", lambda kind: Path("ship") / kind)
    assert load(written(f"extends: classic\n{MAIN}")).recipe.seed == 5
    (mistake,) = refused(written(f"extends: clasic\n{MAIN}"))
    assert mistake.endswith("did you mean classic?")


# overrides


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("schedule.lr=1e-3", "schedule.lr", 0.001),
        ("batch_size=64", "batch_size", 64),
        ("model.depth=2", "model.depth", 2),
        ("augment.0.padding=2", "augment.0.padding", 2),
        ("augment.1=normalize", "augment.1.name", "normalize"),
        ("augment=[]", "augment", []),
        ("clip=null", "clip", None),
        ("ema.decay=0.9", "ema.decay", 0.9),
        ("ema={}", "ema.decay", 0.999),
        ("optimizer.momentum=0.5", "optimizer.momentum", 0.5),
        ("schedule.decay.alpha=0.1", "schedule.decay.alpha", 0.1),
        ("schedule.warmup={name: gradual, for: 5%}", "schedule.warmup.start", 0.0),
        ("schedule={lr: 3}", "schedule.decay.name", "constant"),
        ("epochs=30st", "epochs", Duration(30, "st")),
        ("name=other", "name", "other"),
        (" seed = 4 ", "seed", 4),
        ("description=a: b".replace(": ", ":"), "description", "a:b"),
    ],
)
def test_an_override_sets_its_value(override: str, path: str, value: object) -> None:
    text = MAIN.replace("0.1", "0.1, decay: cosine") + "clip: 1.0\naugment: [random_crop, horizontal_flip]\n"
    found: object = load(written(text), [override]).recipe
    for key in path.split("."):
        found = found[int(key)] if isinstance(found, list) else getattr(found, key)
    assert found == value


def test_another_part_drops_the_old_ones_options_but_keeps_those_of_the_kind() -> None:
    text = MAIN.replace("digits", "{name: photos10, size: 100, crop: 16, resident: 'no'}")
    for overrides in itertools.permutations(["data.name=synthetic", "data.classes=3", "data.workers=1"]):
        data = load(written(text), overrides).recipe.data
        assert (data.name, data.classes, data.workers, data.resident, data.size) == ("synthetic", 3, 1, "no", 10_000)


def test_the_same_name_keeps_the_options() -> None:
    text = MAIN.replace("digits", "{name: photos10, crop: 16}")
    assert load(written(text), ["data.name=photos10"]).recipe.data.crop == 16


def test_a_part_within_a_part_is_opened_by_its_own_name_or_by_its_default() -> None:
    second = load(written(MAIN), ["optimizer=muon", "optimizer.second.eps=0.1"]).recipe.optimizer.second
    assert (second.kind, second.name, second.eps, second.betas) == ("optimizer", "adamw", 0.1, [0.9, 0.999])
    second = load(written(MAIN), ["optimizer.second.momentum=0.3", "optimizer={name: muon, second: sgd}"]).recipe.optimizer.second
    assert (second.name, second.momentum, second.nesterov) == ("sgd", 0.3, False)
    loaded = load(written(MAIN + "optimizer: {name: muon, second: {name: sgd, momentum: 0.2}}\n"))
    assert load(written(dump(loaded.recipe))).recipe == loaded.recipe


def test_a_data_set_may_declare_that_it_has_no_validation() -> None:
    made = Registry()
    made.restore(builtin.snapshot())
    made.add(Part("data", "train_only", lambda: None, facts={"validation": False}))
    load(written(MAIN), ["data=train_only"], registry=made)
    with pytest.raises(RecipeError, match=r"early_stopping: needs validation samples, but train_only has no validation samples$"):
        load(written(MAIN + "early_stopping: {}\n"), ["data=train_only"], registry=made)
    assert refused(written(MAIN), "data=train_only")  # the built-in registry has not learnt it


def test_a_short_trial_may_end_before_milestones_and_warm_up() -> None:
    text = MAIN.replace("epochs: 2", "epochs: 90").replace(
        "0.1", "0.1, warmup: {name: gradual, for: 5ep}, decay: {name: multistep, at: [30ep, 60ep]}"
    )
    assert load(written(text), ["epochs=1"]).recipe.epochs == Duration(1, "ep")


def test_an_extended_setting_need_not_have_an_effect_here() -> None:
    written("evaluate: {every: 5ep}\ncheckpoint: {keep: 5}\n", "base.yaml")
    text = f"extends: base.yaml\n{MAIN}checkpoint: {{every: 'off'}}\n".replace("digits", "{name: synthetic, validation: 0}")
    assert load(written(text)).recipe.checkpoint.keep == 5


def test_of_two_overrides_the_later_wins() -> None:
    assert load(written(MAIN), ["seed=1", "seed=2"]).recipe.seed == 2


@pytest.mark.parametrize(
    ("override", "mistake"),
    [
        ("lr=0.1", "lr: a recipe has no such field; did you mean schedule.lr?"),
        ("shedule.lr=0.1", "shedule.lr: a recipe has no such field; did you mean schedule.lr?"),
        ("schedule.warmpu=none", "schedule.warmpu: schedule has no such field; it has lr, warmup, decay; did you mean schedule.warmup?"),
        ("model.dept=20", "model.dept: tiny_convnet has no such option; it has width, depth, norm, dropout; did you mean depth?"),
        ("schedule.lr=abc", "schedule.lr: found 'abc'; expected a number greater than 0 and at most 1000000 or a mapping with per_256, rule"),
        (
            "model=resnet_cifarr",
            "model: found 'resnet_cifarr'; expected the name of a part (trainrun list model); did you mean resnet_cifar?",
        ),
        ("seed", "expected key=value, as schedule.lr=0.1"),
        ("=3", "expected key=value, as schedule.lr=0.1"),
        ("a..b=3", "expected key=value, as schedule.lr=0.1"),
        ("seed=", "seed: no value after =; null stands for none"),
        ("seed=[1", "seed: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("seed=!!python/name:os.system", "seed: the tag !!python/name:os.system is not allowed"),
        ("seed={a: 1, a: 2}", "seed: written twice, on lines 1 and 1"),
        ("augment.0=normalize", "augment.0: no entry 0; the list has no entries"),
        ("epochs.x=1", "epochs.x: epochs is 2, a single value with nothing inside"),
        ("extends=base", "extends: can be written in a file only"),
    ],
)
def test_a_mistake_in_an_override_names_it(override: str, mistake: str) -> None:
    text = MAIN + ("augment: []\n" if override.startswith("augment") else "")
    assert refused(written(text), override) == [f"override '{override}': {mistake}"]
    with pytest.raises(RecipeError) as caught:
        load("run.yaml", [override])
    assert [(m.line, m.column) for m in caught.value.mistakes] == [(None, None)]


def test_mistakes_of_the_file_and_of_overrides_are_told_together() -> None:
    assert len(refused(written(MAIN + "sed: 1\n"), "lr=1", "seed=x")) == 3


# sources


def test_every_value_knows_where_it_comes_from() -> None:
    written("schedule:\n  lr: 0.5\n  decay: cosine\n", "base.yaml")
    text = "extends: base.yaml\ndata: digits\nmodel:\n  name: tiny_convnet\n  depth: 2\nepochs: 2\naugment:\n  - random_crop\n"
    sources = load(written(text), ["schedule.lr=0.1", "augment.0.padding=2", "model.width=8"]).sources
    told = {
        ("name",): "automatic: the file's name",
        ("data", "name"): "run.yaml:2",
        ("model", "name"): "run.yaml:4",
        ("model", "depth"): "run.yaml:5",
        ("model", "width"): "override model.width=8",
        ("epochs",): "run.yaml:6",
        ("schedule", "lr"): "override schedule.lr=0.1",
        ("schedule", "decay", "name"): "base.yaml:3 (extended)",
        ("augment", 0, "name"): "run.yaml:8",
        ("augment", 0, "padding"): "override augment.0.padding=2",
    }
    assert {at: str(sources[at]) for at in told} == told
    assert not {("seed",), ("model", "norm"), ("schedule", "decay", "alpha"), ("extends",)} & set(sources)
    assert sources[("model", "depth")] == Source("file", "run.yaml", 5, 10)


def test_sources_of_what_was_replaced_are_gone() -> None:
    written("schedule: {lr: 0.5, decay: {name: cosine, alpha: 0.1}}\n", "base.yaml")
    text = f"extends: base.yaml\n{MAIN}".replace("0.1", "0.1, decay: {name: cosine}").replace("digits", "{name: photos10, crop: 16}")
    sources = load(written(text), ["data.name=synthetic"]).sources
    assert str(sources[("schedule", "decay", "name")]) == "run.yaml:5"
    assert not {("schedule", "decay", "alpha"), ("data", "crop")} & set(sources)


def test_a_later_mistake_is_placed_at_the_nearest_written_value() -> None:
    loaded: Loaded = load(written(MAIN), ["batch_size=64"])
    assert str(loaded.mistake("schedule.lr", "too high", "0.01")) == "run.yaml:4:16: schedule.lr: too high; did you mean 0.01?"
    assert str(loaded.mistake("schedule.warmup.for", "x")) == "run.yaml:4:11: schedule.warmup.for: x"
    assert str(loaded.mistake("batch_size", "x")) == "override 'batch_size=64': batch_size: x"
    assert str(loaded.mistake("seed", "x")) == "run.yaml:1:1: seed: x"
    assert str(loaded.mistake("name", "x")) == "run.yaml:1:1: name: x"


# finding


def test_shipped_configs_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    config = written(MAIN, "ship/configs/tiny.yaml")
    monkeypatch.setattr("trainrun.recipe.find.shipped", lambda kind: Path("ship") / kind)
    assert [find(name) for name in ("tiny", "tiny.yaml", "configs/tiny.yaml", "configs/tiny", config)] == [Path(config)] * 5
    with pytest.raises(RecipeError, match=r"^tinny: there is no such file, .* \(shipped: tiny\); did you mean tiny\?$"):
        find("tinny")
    written(MAIN, "tiny")
    assert find("tiny") == Path("tiny")  # the person's own file goes first


def test_shipped_folders_lie_beside_or_in_the_package() -> None:
    assert shipped("configs").name == "configs"
    assert shipped("recipes").is_absolute()


def test_what_is_no_readable_file_is_refused() -> None:
    Path("folder").mkdir()
    os.mkfifo("pipe")
    assert refused("folder") == ["folder: is a folder; expected a recipe file"]
    assert refused("pipe") == ["pipe: is no regular file; expected a recipe file"]
    assert refused("/dev/zero") == ["/dev/zero: is no regular file; expected a recipe file"]
    assert refused(written(f"extends: pipe\n{MAIN}")) == [
        "run.yaml:1:10: extends: found 'pipe'; expected a shipped recipe's name, or a path relative to this file"
    ]


LARGE = {
    "unknown fields": "".join(f"sched{n}: 1\n" for n in range(9_000)),
    "unknown options": MAIN.replace("tiny_convnet", "{name: tiny_convnet, " + ", ".join(f"dep{n}: 1" for n in range(9_000)) + "}"),
    "unknown parts": MAIN + "augment: [" + "random_crip, " * 15_000 + "]\n",
    "bad values": MAIN + "augment: [{name: normalize, mean: [" + "x, " * 15_000 + "]}]\n",
    "extended": "extends: large.yaml\n" + MAIN,
    "milestones": MAIN.replace("0.1", "0.1, decay: {name: multistep, at: [" + "9ep, " * 15_000 + "]}"),
    "plugins": MAIN + "plugins: [" + "a.py, " * 15_000 + "]\n",
    "long word": MAIN.replace("tiny_convnet", "resnet" * 170_000),
}
LIMITED = """
import resource, sys
import trainrun.parts
resource.setrlimit(resource.RLIMIT_AS, (1_000_000_000, 1_000_000_000))
resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
from trainrun.errors import RecipeError
from trainrun.recipe.load import load
try:
    load("run.yaml")
except RecipeError as error:
    print(len(error.mistakes))
"""


@pytest.mark.parametrize("name", LARGE)
def test_large_recipes_are_refused_within_10_seconds_and_1_gigabyte(name: str) -> None:
    written(LARGE["unknown fields"], "large.yaml")
    written(LARGE[name])
    root = str(Path(trainrun.parts.__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", LIMITED], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert int(run.stdout) >= 1


def test_loading_imports_no_torch_and_is_quick() -> None:
    written(MAIN)
    program = "import sys, time, trainrun.parts\nfrom trainrun.recipe.load import load\nload('run.yaml')\nstart = time.process_time()\nload('run.yaml')\nprint('torch' in sys.modules, time.process_time() - start)"
    root = str(Path(trainrun.parts.__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=True
    )
    imported, seconds = run.stdout.split()
    assert imported == "False"
    assert float(seconds) < 0.05
