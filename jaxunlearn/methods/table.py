"""The table of methods, and how an entry of a config becomes actions."""

import sys
from collections.abc import Iterator
from typing import Any

from jaxunlearn.methods import (
    amnesiac,
    amun,
    assd,
    bad_teacher,
    boundary_expand,
    boundary_shrink,
    brought,
    cf_k,
    cfw,
    conv_transpose,
    delete,
    eu_k,
    fcs,
    finetune,
    fisher,
    gradient_ascent,
    influence,
    jit,
    kde,
    l1_sparse,
    lfssd,
    lotus,
    msg,
    mu_mis,
    munba,
    neggrad_plus,
    noisy_finetune,
    prmq,
    random_label,
    retrain,
    rni,
    saliency,
    salun,
    salun_cra,
    salun_soft,
    scrub,
    sfron,
    ssd,
    svd_projection,
    unsir,
)
from jaxunlearn.methods.method import Method, from_module
from jaxunlearn.methods.stages import in_stages
from jaxunlearn.methods.task import Task
from jaxunlearn.names import is_path, resolve
from jaxunlearn.training.passes import Action

METHODS: dict[str, Method] = {
    "amnesiac": from_module(amnesiac),
    "amun": from_module(amun),
    "assd": from_module(assd),
    "bad_teacher": from_module(bad_teacher),
    "boundary_expand": from_module(boundary_expand),
    "boundary_shrink": from_module(boundary_shrink),
    "cf_k": from_module(cf_k),
    "cfw": from_module(cfw),
    "conv_transpose": from_module(conv_transpose),
    "delete": from_module(delete),
    "eu_k": from_module(eu_k),
    "fcs": from_module(fcs),
    "finetune": from_module(finetune),
    "fisher": from_module(fisher),
    "gradient_ascent": from_module(gradient_ascent),
    "influence": from_module(influence),
    "jit": from_module(jit),
    "kde": from_module(kde),
    "l1_sparse": from_module(l1_sparse),
    "lfssd": from_module(lfssd),
    "lotus": from_module(lotus),
    "msg": from_module(msg),
    "mu_mis": from_module(mu_mis),
    "munba": from_module(munba),
    "neggrad_plus": from_module(neggrad_plus),
    "noisy_finetune": from_module(noisy_finetune),
    "prmq": from_module(prmq),
    "random_label": from_module(random_label),
    "retrain": from_module(retrain)._replace(tune={}),  # it is what others are judged by
    "rni": from_module(rni),
    "salun": from_module(salun),
    "salun_cra": from_module(salun_cra),
    "salun_soft": from_module(salun_soft),
    "scrub": from_module(scrub),
    "sfron": from_module(sfron),
    "ssd": from_module(ssd),
    "svd_projection": from_module(svd_projection),
    "unsir": from_module(unsir),
}
# What an entry can name besides, which unlearns nothing.
OTHERS = {"brought": from_module(brought)}


def find(name: str | tuple[str, ...]) -> Method:
    """The method of a name in `METHODS` or `OTHERS`, or of a path such as "mymethods:passes".

    Of several names, such as ("ssd", "finetune"): one after the other, see `stages`.

    Raises:
      UserError: there is none, or they cannot follow each other.
    """
    if not isinstance(name, str):
        return in_stages(tuple(name), [find(one) for one in name])
    found = resolve("method", name, METHODS | OTHERS)
    if not is_path(name):
        return found
    module, _, passes = name.partition(":")
    return from_module(sys.modules[module], passes)


def modules(settings: Any) -> tuple[str, ...]:
    """The modules that make what an entry's settings ask for."""
    masking = (saliency.__name__,) if _is_masked(settings) else ()
    return (*find(settings.method).modules, *masking)


def _is_masked(settings: Any) -> bool:
    return "mask" in settings and settings.mask.ratio < 1


def actions(task: Task, settings: Any) -> Iterator[Action]:
    """The actions of a config's entry: its method, under a mask where it has one."""
    made = find(settings.method).passes(task, settings)
    if not _is_masked(settings):
        return made
    mask = settings.mask
    return saliency.masked(made, task, lambda: saliency.saliency_mask(task, mask), mask.compat)
