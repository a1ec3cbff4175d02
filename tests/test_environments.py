"Which releases of other packages selfalign works with: what is written down, and what differs between them."
import re, shutil, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import pytest

ROOT = Path(__file__).parents[1]

@pytest.mark.parametrize("fields,name", [(("gradient_checkpointing",), "gradient_checkpointing"),
                                         (("gradient_checkpointing", "activation_checkpointing"), "activation_checkpointing")])
def test_checkpointing_takes_the_name_that_transformers_knows(fields, name):
    from selfalign.sft import _checkpointing
    assert _checkpointing(True, fields) == {name: True, f"{name}_kwargs": dict(use_reentrant=False)}

@pytest.mark.parametrize("on", [True, False])
def test_checkpointing_reaches_the_trainer(on, tmp_path):
    from selfalign.sft import TrainConfig, _sft_config
    args = _sft_config(TrainConfig(gradient_checkpointing=on, bf16=False), tmp_path, 0, False)
    assert args.gradient_checkpointing is on
    args.gradient_checkpointing_kwargs["use_reentrant"] = True # as TRL does for LoRA under ZeRO-3
    assert getattr(args, "activation_checkpointing_kwargs", args.gradient_checkpointing_kwargs)["use_reentrant"] is True
