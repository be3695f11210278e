"""MedMNIST's 2-D single-label sets, from the published files."""

from typing import Any, NamedTuple

from jaxunlearn.data import common, npz
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.errors import UserError

SIZES = (28, 64, 128, 224)
_URL = "https://zenodo.org/records/10519652/files/{}?download=1"


class _Info(NamedTuple):
    """MD5 of the file at each of `SIZES`, names of the classes, which are malignant, and more."""

    md5: tuple[str, str, str, str]
    class_names: tuple[str, ...]
    malignant: tuple[int, ...] = ()
    licence: str = "CC BY 4.0"
    caution: str = ""


_ORGANS = (
    *("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right"),
    *("liver", "lung-left", "lung-right", "pancreas", "spleen"),
)

FLAGS = {
    "pathmnist": _Info(
        (
            "a8b06965200029087d5bd730944a56c1",
            "55aa9c1e0525abe5a6b9d8343a507616",
            "ac42d08fb904d92c244187169d1fd1d9",
            "2c51a510bcdc9cf8ddb2af93af1eadec",
        ),
        (
            *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle"),
            *("normal colon mucosa", "cancer-associated stroma"),
            "colorectal adenocarcinoma epithelium",
        ),
        malignant=(7, 8),
    ),
    "dermamnist": _Info(
        (
            "0744692d530f8e62ec473284d019b0c7",
            "b70a2f5635c6199aeaa28c31d7202e1f",
            "2defd784463fa5243564e855ed717de1",
            "8974907d8e169bef5f5b96bc506ae45d",
        ),
        (
            *("actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma"),
            *("benign keratosis-like lesions", "dermatofibroma", "melanoma"),
            *("melanocytic nevi", "vascular lesions"),
        ),
        malignant=(0, 1, 4),
        licence="CC BY-NC 4.0",
        caution="As published, DermaMNIST has images of one lesion in train and in val or test "
        "(Abhishek et al. 2025, https://doi.org/10.1038/s41597-025-04382-5): unless this is a "
        "corrected version, these are not of unseen lesions, and a forgotten image may have others "
        "of its lesion in retain; data.groups takes the lesions.",
    ),
    "octmnist": _Info(
        (
            "c68d92d5b585d8d81f7112f81e2d0842",
            "e229e9440236b774d9f0dfef9d07bdaf",
            "0a97e76651ace45c5d943ee3f65b63ae",
            "abc493b6d529d5de7569faaef2773ba3",
        ),
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    ),
    "pneumoniamnist": _Info(
        (
            "28209eda62fecd6e6a2d98b1501bb15f",
            "8f4eceb4ccffa70c672198ea285246c6",
            "05b46931834c231683c68f40c47b2971",
            "d6a3c71de1b945ea11211b03746c1fe1",
        ),
        ("normal", "pneumonia"),
    ),
    "retinamnist": _Info(
        (
            "bd4c0672f1bba3e3a89f0e4e876791e4",
            "afda852cc34dcda56f86ad2b2457dbcc",
            "e48e916a24454daf90583d4e6efb1a18",
            "eae7e3b6f3fcbda4ae613ebdcbe35348",
        ),
        ("0", "1", "2", "3", "4"),
    ),
    "breastmnist": _Info(
        (
            "750601b1f35ba3300ea97c75c52ff8f6",
            "742edef2a1fd1524b2efff4bd7ba9364",
            "363e4b3f8d712e9b5de15470a2aaadf1",
            "b56378a6eefa9fed602bb16d192d4c8b",
        ),
        ("malignant", "normal, benign"),
        malignant=(0,),  # the published labels call the malignant ones 0
    ),
    "bloodmnist": _Info(
        (
            "7053d0359d879ad8a5505303e11de1dc",
            "2b94928a2ae4916078ca51e05b6b800b",
            "adace1e0ed228fccda1f39692059dd4c",
            "b718ff6835fcbdb22ba9eacccd7b2601",
        ),
        (
            *("basophil", "eosinophil", "erythroblast"),
            "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
            *("lymphocyte", "monocyte", "neutrophil", "platelet"),
        ),
    ),
    "tissuemnist": _Info(
        (
            "ebe78ee8b05294063de985d821c1c34b",
            "123ece2eba09d0aa5d698fda57103344",
            "61b955355d7425a89687b06cca3ce0c2",
            "b077128c4a949f0a4eb01517f9037b9c",
        ),
        (
            *("Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule"),
            *("Glomerular endothelial cells", "Interstitial endothelial cells", "Leukocytes"),
            *("Podocytes", "Proximal Tubule Segments", "Thick Ascending Limb"),
        ),
    ),
    "organamnist": _Info(
        (
            "68e3f8846a6bd62f0c9bf841c0d9eacc",
            "2dcccc29b88e6da5a01161ef20cda288",
            "eeae80d0a227a8d099027e1b3cfd3b60",
            "50747347e05c87dd3aaf92c49f9f3170",
        ),
        _ORGANS,
    ),
    "organcmnist": _Info(
        (
            "b9ceb9546e10131b32923c5bbeaea2b1",
            "3ce34a8724ea6f548e6db4744d03b6a9",
            "773c1f009daa3fe5d9a2a201b2a7ed94",
            "050f5e875dc056f6768abf94ec9995d1",
        ),
        _ORGANS,
    ),
    "organsmnist": _Info(
        (
            "9ab87b696fb54e2a387ebe992d6ed5f1",
            "53a6d115339d874c25e309a994ff46d3",
            "ded0c5fa01a95dc4978b956f613e9b8e",
            "b354719e553fbbb2513d5533f52a4cb1",
        ),
        _ORGANS,
    ),
}


def load(config: Any) -> Dataset:
    """A 2-D set of MedMNIST at 28, 64, 128 or 224 pixels, in its official split.

    MedMNIST v2 (Yang et al. 2023, https://doi.org/10.1038/s41597-022-01721-8); the larger sizes
    are MedMNIST+ (2024). The folder and the file names are the `medmnist` package's own, so one
    download serves both.

    Args:
      config: the `data` config; `path` is a file read in place of the published one, without a
        checksum; `root` the folder for the download (~/.medmnist); `size` the image side, which a
        `path` may leave at 28.

    Raises:
      UserError: chestmnist (multi-label), an unpublished size or one that the file has not, a
        failed download, a wrong checksum.
    """
    if config.name == "chestmnist":
        raise UserError(
            "data.name='chestmnist' is multi-label (14 findings per image) and not supported; "
            f"allowed: one label per image, such as {', '.join(FLAGS)}"
        )
    info = FLAGS[config.name]
    name, path = config.name, config.path
    if not path:
        if config.size not in SIZES:
            raise UserError(
                f"data.size must be one of {', '.join(map(str, SIZES))} for {name}, "
                f"got {config.size}"
            )
        name += "" if config.size == 28 else f"_{config.size}"
        md5 = info.md5[SIZES.index(config.size)]
        url = _URL.format(f"{name}.npz")
        path = common.fetch(url, md5, config.root or "~/.medmnist", f"{name}.npz")
    sets, class_names, _ = npz.read(path)
    side = sets[0].images.shape[1]
    if config.path and config.size not in (28, side):
        raise UserError(
            f"data.size={config.size} and the images of {config.path} have {side} pixels a side; "
            f"set config.data.size={side}, or give another file"
        )
    if class_names not in ((), info.class_names):
        raise UserError(
            f"{config.path}: its class_names are not those of {config.name}, so that its labels "
            "mean something else; use data.name='npz', or leave class_names out"
        )
    return Dataset(
        name, *sets, info.class_names, info.malignant, info.licence, caution=info.caution
    )
