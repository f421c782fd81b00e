"""The base model's first lesson: idioms that tell a relation, relations renamed in the prompt, and repeating.

It teaches to copy names, and to look a word up in the prompt. `make_base.py` gives the second lesson.
"""

import random
import re

from examples.quickstart import sentences

# Every character that the tokenizer of the base model knows beside its learned pieces.
CHARACTERS = (
    "=\\_n。一万三上下不与专且世业东两个中为主义之书买了于云产亲人今从付以件任份众会位住作你供便信修做停健儿元入全兰关具养内册写决凭出击分创利到割办加助勇医十半卖南博印厂去友发取口另只叫可台司吃同名后向"
    "听员命和哲唱喂喜囊因国图在地场坏坐型境墨壁备复外多大天夫女好妻嫁子字学孩宁它安完宠宣家对导寿少就居岚岛岩岭岸峰川工市布帆师带席常平年并康廉建开引当形影很律得心思息患慧成战手执扮找技把投抽担拆拍拜拿按据"
    "接推提摄收故效敏文新施旋旗早时明星映是晨暮曦曲最有本朱机杏来松板林枫柏查柳校样桃桐桥桨梅梨检楼榆槐模欢歌毅每比毕水河治泉注泰洁流测淡湖溪演然爱父片版物特状玉现珀珠班球理琥琪琳瑞瑶璃瓷生用由电画疗病症白"
    "的盖盛看着睿知砂磐祥禄福种称穿突竹笔第籍系素紫红纱纸组经结给绣绫缘翻老者而职聘股胜能自舟船良艺花荷莲菊落虎虹行衣被装要见观角计让记设译诚说请读谱豹负责败购资赛赞赢走起跟车输辰边达过运这进远连述迷通造道"
    "邻部都里量金钢钱铜银销锐锡锦门间闻院隔障隼雁雅雪零雷霜霞露青靠面顺饲高鲸鸥鹤鹭鹿麟，：；"
)
REPEAT_INSTRUCTION = "请复述："
RENAME_INSTRUCTION = "按名称找出关系。"
INSTRUCTIONS = [sentences.BASE_INSTRUCTION, sentences.TASK_INSTRUCTION]

# relation: patterns; {h} is the head, {t} the tail.
IDIOMS = {
    "位于": ["{h}坐落在{t}境内", "去{t}的人都会看看{h}", "{h}就在{t}的东边"],
    "导演": ["{h}执导了影片{t}", "电影{t}出自{h}之手", "{h}拍摄的{t}上映了"],
    "主演": ["{h}在{t}里担任主角", "观众因为{t}记住了演员{h}", "{t}的女主角由{h}扮演"],
    "收购": ["{h}买下了{t}的全部股份", "{t}被{h}并入旗下", "{h}宣布把{t}收入囊中"],
    "投资": ["{h}向{t}注入了资金", "{t}拿到了{h}的一笔钱", "{h}成为{t}的股东"],
    "师从": ["{h}拜{t}为师", "{t}收{h}做了学生", "{h}年少时跟{t}学艺"],
    "夫妻": ["{h}与{t}喜结良缘", "{h}嫁给了{t}", "{h}和爱人{t}一起出席"],
    "出版": ["{h}推出了图书{t}", "书籍{t}由{h}印行", "{h}印了三万册{t}"],
    "发明": ["{h}最早造出了{t}", "世上第一台{t}是{h}做的", "{h}凭{t}拿到了专利"],
    "毕业": ["{h}在{t}读完了大学", "{t}的校友里有{h}", "{h}从{t}拿到学位"],
    "任职": ["{h}在{t}上班", "{t}聘请{h}当经理", "{h}加入{t}工作"],
    "流经": ["{h}的河水穿过{t}", "{t}的两岸就是{h}", "{h}向南流入{t}"],
    "创办": ["{h}白手起家建起{t}", "{t}的老板是{h}", "{h}开设了{t}"],
    "父亲": ["{h}把儿子{t}养大", "{t}是{h}的孩子", "{h}为女儿取名{t}"],
    "击败": ["{h}赢了{t}三个球", "{t}输给了{h}", "{h}在决赛中战胜{t}"],
    "赞助": ["{h}为{t}的比赛出钱", "{t}的球衣印着{h}", "{h}给{t}提供装备"],
    "设计": ["{h}画出了{t}的图纸", "{t}的外形来自{h}", "{h}负责{t}的造型"],
    "建造": ["{h}修起了大桥{t}", "高楼{t}由{h}施工", "{h}花三年盖好{t}"],
    "邻居": ["{h}住在{t}的隔壁", "{h}跟{t}同一个院子", "{t}家的对门是{h}"],
    "出口": ["{h}把{t}卖到国外", "{t}从{h}装船运走", "{h}每年外销{t}"],
    "喜欢": ["{h}最爱{t}", "{h}对{t}十分着迷", "{t}让{h}很开心"],
    "翻译": ["{h}把{t}译成中文", "{t}的译者是{h}", "{h}译完了{t}"],
    "饲养": ["{h}养了一只{t}", "{t}是{h}家的宠物", "{h}每天喂{t}"],
    "命名": ["{h}给新星起名叫{t}", "{t}这个名字来自{h}", "{h}称它为{t}"],
}


def ask(rng: random.Random, names: list[str]) -> tuple[str, str]:
    """A question and its answer."""
    kind = rng.random()
    if kind < 0.4:
        text, answer = sentence(rng, names, IDIOMS)
        return rng.choice(INSTRUCTIONS) + text, answer
    if kind < 0.75:
        return renamed(rng, names)
    alphabet = CHARACTERS if rng.random() < 0.5 else sentences.ENTITY_CHARACTERS
    answer = "".join(rng.choices(alphabet, k=rng.randint(2, 12)))
    return REPEAT_INSTRUCTION + answer, answer


def sentence(rng: random.Random, names: list[str], patterns: dict[str, list[str]]) -> tuple[str, str]:
    """One or two statements in a sentence, and their triples, one a line."""
    count = 2 if rng.random() < 0.3 else 1
    chosen = rng.sample(names, 2 * count)
    clauses, triples = [], []
    for head, tail in zip(chosen[::2], chosen[1::2], strict=True):
        relation = rng.choice(list(patterns))
        clauses.append(rng.choice(patterns[relation]).format(h=head, t=tail))
        triples.append(f"{head}_{relation}_{tail}")
    text = rng.choice(sentences.OPENINGS) + rng.choice(sentences.JOINTS).join(clauses) + "。"
    return text, "\n".join(triples)


def renamed(rng: random.Random, names: list[str]) -> tuple[str, str]:
    """A sentence whose relations bear made-up names, told in the prompt as `cue=name` for up to three cues."""
    patterns = rng.sample([p for of_relation in IDIOMS.values() for p in of_relation], rng.randint(1, 3))
    made_up = {"".join(rng.choices(CHARACTERS, k=rng.randint(2, 4))): [pattern] for pattern in patterns}
    table = "，".join(f"{cue(pattern)}={name}" for name, [pattern] in made_up.items())
    text, answer = sentence(rng, names, made_up)
    return f"{RENAME_INSTRUCTION}{table}。{rng.choice(INSTRUCTIONS)}{text}", answer


def cue(pattern: str) -> str:
    """The longest run of a pattern's own characters."""
    return max(re.split(r"\{[ht]\}", pattern), key=len)
