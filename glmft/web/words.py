"""Every text of the page, in both languages beside each other."""

from collections.abc import Callable

LANGUAGES = {"en": "English", "zh": "中文"}
Say = Callable[[str], str]

WORDS: dict[str, tuple[str, str]] = {
    "tagline": ("look at what you trained", "看看你训练出了什么"),
    "chat": ("Chat", "对话"),
    "data": ("Data", "数据"),
    "run": ("Run", "训练"),
    "predictions": ("Predictions", "预测"),
    "problem": ("This did not work: ", "未能完成："),
    "fault": (
        "something went wrong inside glmft; the terminal where it was started says what",
        "glmft 内部出错；详情见启动它的终端",
    ),
    # chat
    "models": ("Models that answer", "参与回答的模型"),
    "unopened": ("Could not be opened", "无法打开"),
    "no_models": (
        "No model could be opened, so there is nobody to talk to. The other tabs work.",
        "没有任何模型能打开，因此无法对话；其他页面可照常使用。",
    ),
    "question": ("Your message", "输入消息"),
    "send": ("Send", "发送"),
    "stop": ("Stop", "停止"),
    "retry": ("Retry", "重答"),
    "undo": ("Undo", "撤回"),
    "clear": ("New chat", "新对话"),
    "empty_chat": ("Say something; the answer comes word by word.", "说点什么，回答会逐字出现。"),
    "system": ("System text", "系统提示"),
    "system_hint": ("what the model is told before the first message", "第一条消息之前告诉模型的话"),
    "tools": (
        "Tools (JSON); after a call, your next message is what the tool returned",
        "工具（JSON）；模型调用工具后，下一条消息即工具的返回结果",
    ),
    "settings": ("How it answers", "回答方式"),
    "max_new_tokens": ("Longest answer (tokens)", "回答最多 token 数"),
    "do_sample": ("Draw at random", "随机采样"),
    "temperature": ("Temperature (0: the model's own)", "温度 temperature（0：模型自带）"),
    "top_p": ("Top p (0: the model's own)", "top p（0：模型自带）"),
    "top_k": ("Top k (0: all)", "top k（0：不限）"),
    "repetition_penalty": ("Repetition penalty", "重复惩罚"),
    "seed": ("Seed", "随机种子"),
    "legend_answer": ("answer", "回答"),
    "legend_prompt": ("prompt", "提示"),
    "tokens_view": ("The tokens as the model saw them", "模型实际看到的 token"),
    "show_tokens": ("Show the tokens of the last answer", "显示最近一次回答的 token"),
    "empty_answer": ("(the answer is empty)", "（回答为空）"),
    "empty_question": ("Write something first.", "请先输入内容。"),
    "no_chosen": ("Choose at least one model.", "请至少选择一个模型。"),
    "cut_note": ("(cut at {} tokens)", "（在 {} 个 token 处截断）"),
    "stopped_note": ("(stopped)", "（已停止）"),
    "busy": ("An answer is still being made; stop it first.", "回答尚未完成，请先停止。"),
    "too_long": ("The message is longer than {} characters.", "消息超过 {} 个字符。"),
    "nothing_yet": ("Nothing has been answered yet.", "还没有任何回答。"),
    "prompt": ("prompt", "提示"),
    "answer": ("Answer", "回答"),
    # data
    "file": ("File", "文件"),
    "record": ("Record (from 0)", "记录（从 0 起）"),
    "tokenizer_of": ("Tokenizer of", "所用分词器"),
    "template": ("Prompt template", "提示模板"),
    "loss_on": ("Answers that are learned", "学习哪些回答"),
    "max_len": ("Longest row (tokens)", "每行最多 token 数"),
    "max_src_len": ("Longest prompt (tokens; 0: what fits)", "提示最多 token 数（0：能放下即可）"),
    "report": ("Report", "报告"),
    "lengths": ("Lengths of the rows", "各行长度"),
    "length": ("tokens", "token 数"),
    "rows": ("rows", "行数"),
    "tokens": ("tokens", "个 token"),
    "with_label": ("with a label", "个带标签"),
    "piece": ("piece", "片段"),
    "id": ("id", "编号"),
    "label": ("Label", "标签"),
    "legend_learned": ("learned", "学习"),
    "legend_context": ("context only", "仅作上下文"),
    "legend_special": ("special token", "特殊 token"),
    "as_table": ("As a table", "以表格显示"),
    "more_tokens": ("{} more tokens are not shown.", "另有 {} 个 token 未显示。"),
    "no_files": (
        "There is no data file here. Name a file or a folder with --data_path.",
        "这里没有数据文件。请用 --data_path 指定文件或文件夹。",
    ),
    "no_tokenizer": ("No model could be opened, so there is no tokenizer.", "没有任何模型能打开，因此没有分词器。"),
    # run
    "run_folder": ("Run folder", "训练文件夹"),
    "refresh": ("Refresh the list", "刷新列表"),
    "no_runs": (
        "There is no run below --output_root yet. Start one, then refresh the list.",
        "--output_root 下还没有训练。开始训练后请刷新列表。",
    ),
    "running": ("running", "训练中"),
    "finished": ("finished", "已完成"),
    "stopped": ("stopped before its end", "未到终点已停止"),
    "step": ("step", "步"),
    "of": ("of", "/"),
    "loss": ("Loss", "损失"),
    "training": ("training", "训练"),
    "validation": ("validation", "验证"),
    "learning_rate": ("Learning rate", "学习率"),
    "grad_norm": ("Gradient norm", "梯度范数"),
    "tokens_per_second": ("Tokens a second", "每秒 token 数"),
    "peak_memory": ("peak memory", "内存峰值"),
    "scores": ("Scores of validation answers", "验证回答得分"),
    "optimizer_step": ("optimizer step", "优化步"),
    "value": ("value", "值"),
    "what_trains": ("What trains", "训练哪些参数"),
    "checkpoints": ("Checkpoints", "检查点"),
    "run_settings": ("Settings", "设置"),
    "setting": ("setting", "设置项"),
    "no_curves": ("Nothing is logged yet.", "还没有日志。"),
    "not_told": ("This run does not tell.", "此训练未记录。"),
    # predictions
    "prediction_folder": ("Folder of predictions", "预测文件夹"),
    "no_predictions": (
        "There are no predictions below --output_root yet. Make some with glmft predict.",
        "--output_root 下还没有预测。可用 glmft predict 生成。",
    ),
    "question_column": ("Question", "问题"),
    "number": ("#", "#"),
    "click_row": (
        "Click a row to read it whole; the menu ⋮ of a score's name sorts by it.",
        "点击一行可看全文；得分名称旁的 ⋮ 菜单可排序。",
    ),
    "first_rows": ("The first {} records are shown.", "只显示前 {} 条记录。"),
    "questions_from": ("The questions are those of {}.", "问题取自 {}。"),
    "no_questions": (
        "No data file here has these labels, so the questions are not shown; name it with --data_path.",
        "这里没有与这些标签相符的数据文件，因此不显示问题；请用 --data_path 指定。",
    ),
    "means": ("All records", "全部记录"),
    "empty_text": ("(empty)", "（空）"),
}


def speaker(language: str) -> Say:
    """The texts of a language by their names."""
    column = list(LANGUAGES).index(language)
    return lambda name: WORDS[name][column]


def preferred(accepted: str) -> str:
    """The language of `LANGUAGES` that an Accept-Language header asks for first; English if it asks for neither."""
    wishes = []
    for position, part in enumerate(accepted[:1000].split(",")):
        name, _, weight = part.strip().partition(";q=")
        try:
            wishes.append((-float(weight or 1), position, name.strip().lower().split("-")[0]))
        except ValueError:
            continue
    return next((name for weight, _, name in sorted(wishes) if name in LANGUAGES and weight), "en")
