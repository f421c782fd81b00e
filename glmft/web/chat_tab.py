import gradio as gr
def chat_tab(page, site, say):
    gr.HTML("soon")
