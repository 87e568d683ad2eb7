"""The hybrid model itself. Importing this package makes the hybrid known to transformers."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from hybridize.runtime.configuration_hybridize import HybridConfig
from hybridize.runtime.modeling_hybridize import HybridForCausalLM, HybridModel


def register() -> None:
    """Let AutoConfig, AutoModel and AutoModelForCausalLM load hybrids without remote code."""
    AutoConfig.register(HybridConfig.model_type, HybridConfig, exist_ok=True)
    AutoModel.register(HybridConfig, HybridModel, exist_ok=True)
    AutoModelForCausalLM.register(HybridConfig, HybridForCausalLM, exist_ok=True)


register()

__all__ = ["HybridConfig", "HybridForCausalLM", "HybridModel", "register"]
