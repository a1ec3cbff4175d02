"""SELF-ALIGN, step by step: an aligned assistant from fewer than 300 lines of human text."""
__version__ = "0.1.0"
