"""The page of `glmft web`: what it shows is computed in modules without gradio, laid out in the `*_tab` modules."""
