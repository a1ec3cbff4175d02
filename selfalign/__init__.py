"""SELF-ALIGN, step by step: an aligned assistant from fewer than 300 lines of human text."""
import os as _os

_os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # nothing phones home; read by huggingface_hub when it is imported
__version__ = "0.1.0"
