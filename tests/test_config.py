"""Every section's defaults and rules, put together; what a user gets wrong is one line."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
import toy
from ml_collections import ConfigDict

from jaxunlearn import config as config_lib
from jaxunlearn import plan
from jaxunlearn.errors import UserError
from jaxunlearn.methods import METHODS

CHOICE = r"config\.{} must be one of .*, got {!r}; did you mean .*{!r}"


@pytest.fixture
def config():
    config = config_lib.default()
    config.methods = config_lib.methods(finetune={}, salun={}, salun_cra={})
    return config


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("name", "a/b", r"config\.name must be a name of up to .*, got 'a/b'"),
        (
            "seeds",
            (2**32,),
            r"config\.seeds must be different whole numbers .*, got \(4294967296,\)",
        ),
        ("seeds", ("a",), r"config\.seeds must be different whole numbers .*, got \('a',\)"),
        ("seeds", (1.5,), r"config\.seeds must be different whole numbers .*, got \(1\.5,\)"),
        ("seeds", (-1,), r"config\.seeds must be different whole numbers from 0"),
        ("seeds", (), r"config\.seeds must be .*, at least one, got \(\)"),
        ("seeds", (1, 1), r"config\.seeds must be different whole numbers .*, got \(1, 1\)"),
        ("devices", -1, r"config\.devices must be a whole number, 0 or more, got -1"),
        ("checkpoint_every", 0, r"config\.checkpoint_every must be a whole number, 1 or more"),
        ("data.name", "lesion", CHOICE.format("data.name", "lesion", "lesions")),
        ("data.count", 9, r"config\.data\.count must be a whole number, 10 or more, got 9"),
        ("data.size", 7, r"config\.data\.size must be a whole number, 8 or more, got 7"),
        ("data.seed", -1, r"config\.data\.seed must be a whole number, 0 or more, got -1"),
        ("data.malignant", ("a",), r"config\.data\.malignant must be labels.*, got \('a',\)"),
        (
            "data.mean",
            ("a",),
            r"config\.data\.mean must be 1 or 3 numbers from 0 to 1, .* got \('a',\)",
        ),
        ("data.mean", (0.5, 0.5), r"config\.data\.mean must be 1 or 3 numbers from 0 to 1, .* got"),
        ("data.std", (0.0,), r"data\.std must be 1 or 3 numbers from 0\.001 to 10, got \(0\.0,\)"),
        ("forget.kind", "group", CHOICE.format("forget.kind", "group", "groups")),
        ("forget.kind", "patients", r"config\.forget\.kind must be one of .*, got 'patients'"),
        ("forget.fraction", 1.0, r"config\.forget\.fraction must be more than 0 and .*, got 1\.0"),
        ("forget.fraction", 0.0, r"config\.forget\.fraction must be more than 0 and .*, got 0\.0"),
        ("forget.groups", ("a",), r"config\.forget\.groups must be whole numbers, got \('a',\)"),
        ("forget.classes", (-1,), r"config\.forget\.classes must be labels.*, got \(-1,\)"),
        ("forget.fractions", ("a",), r"config\.forget\.fractions must be numbers.*, got \('a',\)"),
        ("forget.fractions", (1.0,), r"config\.forget\.fractions must be .*to below 1"),
        (
            "forget.seed",
            -1,
            r"config\.forget\.seed must be a whole number, 0 or more, got -1",
        ),
        ("model.name", "resnet19", r"unknown model 'resnet19': did you mean 'resnet18'"),
        ("model.name", "mine:Net", r"there is no module 'mine'"),
        ("model.width", 0, r"config\.model\.width must be a whole number, 1 or more, got 0"),
        ("model.dtype", "bfloat", CHOICE.format("model.dtype", "bfloat", "bfloat16")),
        ("augment", "crop_flop", r"unknown augmentation 'crop_flop': did you mean 'crop_flip'"),
        ("augment", 3, r"config\.augment must be a name or a tuple of names, got 3"),
        ("augment_params.crop_flip.padding", 2.0, None),  # of a policy that is not used
        ("train.lr", -1.0, r"config\.train\.lr must be more than 0, got -1\.0"),
        ("train.lr", None, r"config\.train\.lr must be a number, got None"),
        ("train.batch_size", 0, r"config\.train\.batch_size must be a whole number, 1 or more"),
        ("train.momentum", 1.0, r"config\.train\.momentum must be 0 to below 1, got 1\.0"),
        ("train.optimizer", "adm", CHOICE.format("train.optimizer", "adm", "adam")),
        ("train.schedule", "cosin", CHOICE.format("train.schedule", "cosin", "cosine")),
        ("train.keep", "best", CHOICE.format("train.keep", "best", "best_val")),
        ("train.milestones", (2.0,), r"config\.train\.milestones must be shares of the epochs"),
        ("methods.finetune.epochs", -1, r"config\.methods\.finetune\.epochs must be .*, got -1"),
        (
            "methods.salun.relabel.order",
            "mix",
            CHOICE.format("methods.salun.relabel.order", "mix", "mixed"),
        ),
        (
            "methods.salun.mask.ratio",
            1.5,
            r"config\.methods\.salun\.mask\.ratio must be 0 to 1, got",
        ),
        (
            "methods.salun.mask.scope",
            "globl",
            CHOICE.format("methods.salun.mask.scope", "globl", "global"),
        ),
        ("methods.salun_cra.cra.weight", -1.0, r"cra\.weight must be 0 or more, got -1\.0"),
        (
            "methods.salun_cra.cra.target",
            "x",
            r"cra\.target must be one of none, entropy, uniform, risk",
        ),
        ("methods.salun.method", "saluun", r"unknown method 'saluun': did you mean 'salun'"),
        ("eval.attack", "svm", CHOICE.format("eval.attack", "svm", "svc")),
        ("eval.members", "al", CHOICE.format("eval.members", "al", "all")),
        ("eval.malignant_rule", "agmax", CHOICE.format("eval.malignant_rule", "agmax", "argmax")),
        ("eval.scenarios", (), r"config\.eval\.scenarios must be pairs .*at least one, got \(\)"),
        ("eval.scenarios", ((0.0, 1.0),), r"config\.eval\.scenarios must be pairs"),
        ("eval.scenarios", ((1.0, 1.0), (1, 1)), r"pairs .*none twice, at least one, got"),
        ("eval.scenarios", ((1.0, float("inf")),), r"pairs .*numbers above 0 to 1e100"),
        ("eval.scenarios", ((1.0, float("nan")),), r"pairs .*numbers above 0 to 1e100"),
        ("eval.scenarios", ((1.0, 10**400),), r"pairs .*numbers above 0 to 1e100"),
        ("eval.batch_size", 0, r"config\.eval\.batch_size must be a whole number, 1 or more"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(config, field, value, message):
    *path, last = field.split(".")
    inner = config
    for part in path:
        inner = inner[part]
    inner[last] = value
    if message is None:
        config_lib.check(config)
        return
    with pytest.raises(UserError, match=message) as caught:
        config_lib.check(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "section, value, message",
    [
        ("methods", {"salun": {}}, r"config\.methods\.salun is not a method entry; build it with"),
        ("methods", {"salun": 3}, r"config\.methods\.salun is not a method entry; build it with"),
        ("forget", {"fraction": 0.1}, r"config\.forget\.\w+ is missing; build the config on"),
        ("forget", 3, r"config\.forget must be a section, set by field, got 3"),
        ("augment_params", {"mixup": 3}, r"config\.augment_params\.\w+ is missing"),
    ],
)
def test_sections_that_were_replaced(config, section, value, message):
    with pytest.raises(UserError, match=message):
        config_lib.check(ConfigDict({**config.to_dict(), section: value}))


@pytest.mark.parametrize(
    "name, message",
    [
        ("original", r"config\.methods\.original: 'original' is reserved; choose another name"),
        ("retrained", r"'retrained' is reserved"),
        ("a/b", r"the name of an entry of config\.methods must be .*, got 'a/b\'"),
    ],
)
def test_names_that_results_cannot_use(config, name, message):
    config.methods = config_lib.methods(**{name: {"method": "salun"}})
    with pytest.raises(UserError, match=message):
        config_lib.check(config)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"epochs": 2.5}, r"config\.methods\.salun\.epochs must be of type int, got 2\.5"),
        ({"relabel": {"exclude_true": "no"}}, r"exclude_true must be of type bool, got 'no'"),
        ({"mask": 0.5}, r"config\.methods\.salun\.mask must be a dict of settings, got 0\.5"),
    ],
)
def test_settings_of_methods_keep_their_types(changes, message):
    with pytest.raises(UserError, match=message):
        config_lib.methods(salun=changes)


def test_misspelt_fields_and_methods_name_the_near_ones():
    with pytest.raises(UserError, match=r"unknown method 'saluun': did you mean 'salun'"):
        config_lib.methods(saluun={})
    with pytest.raises(
        UserError, match=r"unknown field of config\.methods\.salun 'epoch': did you mean 'ep"
    ):
        config_lib.methods(salun={"epoch": 3})
    with pytest.raises(
        UserError, match=r"unknown field of config\.methods\.salun\.mask 'ration': .*'ratio'"
    ):
        config_lib.methods(salun={"mask": {"ration": 3}})
    with pytest.raises(AttributeError, match="width"):
        config_lib.default().model.widht = 3


def test_results_keep_the_order_of_the_methods():
    config = config_lib.default()
    config.methods = config_lib.methods(salun={}, finetune={}, retrain={})
    assert list(config.methods) == ["salun", "finetune", "retrain"]


def test_every_methods_defaults_pass_the_check():
    config = config_lib.default()
    config.methods = config_lib.methods(**{name: {} for name in METHODS})
    config_lib.check(config)


def test_a_method_of_ones_own_brings_its_settings_and_rules(config, tmp_path, monkeypatch):
    (tmp_path / "mymethods.py").write_text(
        "from jaxunlearn import rules\n"
        "DEFAULTS = {'epochs': 3, 'lr': 0.1, 'alpha': 0.5, 'kind': None}\n"
        "RULES = {'alpha': rules.between(0, 1)}\n"
        "def passes(task, config):\n"
        "    yield\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config.methods = config_lib.methods(mine={"method": "mymethods:passes", "alpha": 0.25})
    config_lib.check(config)
    assert config.methods.mine.epochs == 3 and config.methods.mine.alpha == 0.25
    config.methods.mine.alpha = 2.0
    with pytest.raises(UserError, match=r"config\.methods\.mine\.alpha must be 0 to 1, got 2\.0"):
        config_lib.check(config)
    config.methods.mine.alpha = 0.5
    for wrong in (np.float32, float("inf")):  # the last would fail when results are written
        with config.ignore_type():
            config.methods.mine.kind = wrong
        with pytest.raises(UserError, match=r"methods\.mine\.kind is (<class|inf).*; allowed: "):
            config_lib.check(config)
    with pytest.raises(
        UserError, match=r"unknown name in mymethods 'pases': did you mean 'passes'"
    ):
        config_lib.methods(mine={"method": "mymethods:pases"})
    monkeypatch.delitem(sys.modules, "mymethods")


def test_two_configs_share_nothing_that_changes():
    first, second = config_lib.default(), config_lib.default()
    first.data.count, first.train.lr, first.augment_params.mixup.alpha = 50, 0.5, 0.5
    assert second.data.count == 2000 and second.train.lr == 0.1
    assert second.augment_params.mixup.alpha == config_lib.default().augment_params.mixup.alpha == 1


def test_a_config_file_loads_without_scipy():
    code = "import sys; from jaxunlearn import config; print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


UNREAD = [
    ("forget.groups", (17, 2), "config.forget.groups is (17, 2), which nothing reads here; set "),
    ("forget.classes", (1,), "set forget.kind to 'class'"),
    ("forget.path", "list.txt", "set forget.kind to 'indices'"),
    (
        "data.path",
        "ok.npz",
        "config.data.path is 'ok.npz', which nothing reads here; set data",
    ),
    ("data.groups_column", "lesion", "set data.groups to a CSV"),
    ("data.tfds_name", "beans", "set data.name to 'tfds'"),
    ("train.milestones", (0.1,), "set schedule='milestones'"),
    ("methods.finetune.mask.scope", "per_layer", "set mask.ratio below 1"),
    ("methods.random_label.cra.weight", 2.0, "set cra.target"),
    ("methods.ssd.weight_decay", 0.1, "this method does not train"),
    ("augment_params.mixup.alpha", 0.4, "add mixup to config.augment"),
    ("augment_params.crop_flip.padding", 0.25, "set crop_flip.pixels=0"),
]


@pytest.mark.parametrize("field, value, message", UNREAD, ids=[field for field, *_ in UNREAD])
def test_a_setting_that_nothing_reads_is_refused(field, value, message):
    config = config_lib.default()
    config.data.count = 20
    config.methods = config_lib.methods(finetune={}, random_label={}, ssd={})
    config.train.schedule = "cosine"
    config.augment = "crop_flip"
    config_lib.as_published(config)  # sets parameters of policies for all scenarios at once
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as caught:
        plan.make(config, 1)
    assert message in str(caught.value) and f"config.{field} is " in str(caught.value)


def test_a_folder_for_downloads_counts_only_without_a_file():
    config = config_lib.default()
    config.data.name, config.data.root = "dermamnist", "elsewhere"
    dataset = types.SimpleNamespace(malignant=(0,))
    assert not config_lib.unread(config, dataset)
    config.data.path = "mine.npz"
    assert "leave data.path empty" in config_lib.unread(config, dataset)["config.data.root"]


def test_ways_to_draw_labels_keep_what_they_share():
    made = config_lib.by_labels("salun", epochs=3, relabel={"order": "forget_first"})
    assert [entry["relabel"] for entry in made.values()] == [
        {"order": "forget_first"},
        {"order": "forget_first", "every_epoch": False},
        {"order": "forget_first", "exclude_true": True},
    ]
    assert made["salun_once"]["epochs"] == 3


def test_costs_count_only_where_something_is_malignant(tmp_path):
    config = config_lib.default()
    config.data.name, config.data.path = "npz", toy.write_npz(tmp_path / "data.npz")
    config.eval.scenarios = ((5.0, 1.0),)
    with pytest.raises(UserError, match=r"config\.eval\.scenarios is .*; set data\.malignant"):
        plan.make(config, 1)
    config.data.malignant = (1,)
    plan.make(config, 1)


def test_a_grid_may_set_what_only_some_of_its_cells_read():
    config = config_lib.default()
    config.data.count = 20
    config.methods = config_lib.methods(finetune={})
    config.forget.classes = (1,)
    config.augment_params.mixup.alpha = 0.4
    config.axes = (("forget.kind", ("fraction", "class")), ("augment", ("none", "mixup")))
    assert len(plan.make(config, 1)) == 4


def test_numpys_numbers_are_numbers_and_types_that_were_switched_off_are_checked():
    config = config_lib.default()
    config.methods = config_lib.methods(finetune={}, salun={})
    with config.ignore_type():
        config.seeds = np.arange(2)
        config.train.epochs = np.int64(3)
        config.train.lr = np.float32(0.5)
        config.data.mean = np.array([0.5])
    made = config_lib.plain(config)
    config_lib.check(made)
    assert made.seeds == (0, 1) and type(made.train.epochs) is int and made.train.lr == 0.5
    assert list(made.methods) == ["finetune", "salun"] and isinstance(config.seeds, np.ndarray)
    json.dumps(made.to_dict())
    for field, value in (("epochs", "three"), ("epochs", True), ("optimizer", 3), ("lr", None)):
        with made.ignore_type():
            wrong = config_lib.plain(made)
            with wrong.ignore_type():
                wrong.train[field] = value
        with pytest.raises(UserError, match=rf"config\.train\.{field} must be "):
            config_lib.check(wrong)
