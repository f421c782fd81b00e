"""ChatGLM models under the official parameter names, and GLM-4 as transformers has it."""

# The Auto classes come first: they import our modules to register them (glmft/auto.py), and those import transformers'
# layers, which import the Auto classes. Entered from the other end, that circle would meet a half-imported module.
import transformers.models.auto.modeling_auto  # noqa: F401
