"""Every section's defaults and rules, put together; what a user gets wrong is one line."""

import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from jaxunlearn import config as config_lib
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
        ("name", "a/b", r"config\.name must be a word without /, got 'a/b'"),
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
        ("data.count", 9, r"config\.data\.count must be a whole number, 10 to 1000000000, got 9"),
        ("data.size", 7, r"config\.data\.size must be a whole number, 8 to 16384, got 7"),
        ("data.seed", -1, r"config\.data\.seed must be a whole number, 0 to 4294967295, got -1"),
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
            r"config\.forget\.seed must be a whole number, 0 to 4294967295, got -1",
        ),
        ("model.name", "resnet19", r"unknown model 'resnet19': did you mean 'resnet18'"),
        ("model.name", "mine:Net", r"there is no module 'mine'"),
        ("model.width", 0, r"config\.model\.width must be a whole number, 1 or more, got 0"),
        ("model.dtype", "bfloat", CHOICE.format("model.dtype", "bfloat", "bfloat16")),
        ("augment", "crop_flop", r"unknown augmentation 'crop_flop': did you mean 'crop_flip'"),
        ("augment", 3, r"config\.augment must be a name or a tuple of names, got 3"),
        ("augment_params.crop_flip.padding", 2.0, None),  # of a policy that is not used
        ("train.lr", -1.0, r"config\.train\.lr must be more than 0, got -1\.0"),
        ("train.lr", None, r"config\.train\.lr must be more than 0, got None"),
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
        ("a/b", r"config\.methods\.a/b must have a name without /"),
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
        "DEFAULTS = {'epochs': 3, 'lr': 0.1, 'alpha': 0.5}\n"
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
