"""Keep libraries from printing what a user can do nothing about."""

import logging
import warnings

from glmft.dist import name_accelerator


def quiet() -> None:
    """Errors of the libraries are still shown."""
    name_accelerator()
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("transformers", "DeepSpeed", "peft", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
