"""A deterministic generator of Chinese sentences about invented things, with the triples that stand in them.

A pattern is a frame and a cue. The cue is the word that tells the relation ("治好" is 治疗), the frame is what stands
around it ("{a}一直在{cue}{b}"). Two worlds share the frames, the openings, the distractors and the names' characters:
BASE is what the tiny base model is pre-trained on, TASK is what it is fine-tuned for. They share no relation, no cue
and no instruction. Of the frames the last of each kind are held out of TASK's training file, all relations alike; the
names for testing appear nowhere in training, neither in TASK's nor in the base's.

    python -m examples.quickstart.sentences        # writes train.json and the three test files beside it
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ENTITY_CHARACTERS = (
    "云川岭溪泉峰湖岛林松柏梅兰竹菊荷莲桃杏梨枫桐槐柳榆鹤雁鹭鸥隼虎豹鹿麟鲸星辰曦晨暮霞虹霜雪露雷岚玉珠琥珀"
    "瑶琳璃琪瑞祥福禄寿康宁泰安平顺达通远博睿哲思慧敏锐健勇毅诚信义廉洁素雅淡青紫朱墨银铜锡钢磐岩砂瓷锦绣绫纱帆舟桨"
)
TEST_SHARE = 0.1
HELD_OUT = 5  # the last frames of each kind, which no sentence of TASK's training file has

# {a} is the subject, {b} the object, {c} the cue.
VERB_FRAMES = [
    "{a}{c}{b}",
    "{a}会{c}{b}",
    "{a}常常{c}{b}",
    "{a}同时{c}{b}",
    "{a}为了大家{c}{b}",
    "{a}只{c}{b}",
    "{a}{c}的是{b}",
    "{c}{b}的是{a}",
    "{b}由{a}来{c}",
    "{b}是{a}{c}的",
    "{b}被{a}{c}了",
    "{b}靠{a}去{c}",
    "对于{b}，{a}{c}",
    "{a}因为{c}{b}而有名",
    "{a}最会{c}的就是{b}",
    "能{c}{b}的只有{a}",
    "{b}每年都让{a}{c}",
    "要{c}{b}，就得看{a}",
]
NOUN_FRAMES = [
    "{a}是{b}的{c}",
    "{a}成为{b}的{c}",
    "{a}当上了{b}的{c}",
    "{b}的{c}是{a}",
    "{b}的{c}叫{a}",
    "{b}有个{c}，名叫{a}",
    "{b}把{a}当{c}",
    "{a}做了{b}的{c}",
    "{b}请{a}来当{c}",
    "{a}就是{b}新来的{c}",
    "说起{b}的{c}，都知道{a}",
    "大家称{a}为{b}的{c}",
    "{a}这个{c}只跟{b}有关",
]
OPENINGS = ["", "", "", "据说", "听说", "今天", "去年", "后来", "大家都知道", "新闻里说", "记者写道", "书上写着"]
JOINTS = ["，", "；", "，而且", "，同时", "。另外"]
# What tells no relation of either world.
DISTRACTORS = [
    "{x}就在里面",
    "{x}与{y}同年",
    "这让{x}很开心",
    "{x}今天走过{y}",
    "{x}和{y}一起走了",
    "{x}在外面听着",
    "{x}看见了{y}",
]
WITNESSES = ["{x}说", "{x}听{y}说", "{x}写道", "{x}知道", "据{x}和{y}说"]


@dataclass(frozen=True)
class Relation:
    """A triple is subject_relation_object, the other way round when reversed."""

    verbs: str
    nouns: str
    reversed: bool = False


BASE = {
    "导演": Relation("执导 拍出 开拍 导出", "拍片人 大导演"),
    "收购": Relation("买下 收下 购入 接手", "买家 新东家"),
    "投资": Relation("注资 入股 投钱 加股", "股东 出资人"),
    "师从": Relation("引导 带出 造就 看好", "老师 师父", True),
    "出版": Relation("印行 推出 发行 出书", "印书人 发行人"),
    "发明": Relation("造出 发现 做成 做出", "发明人 专利人"),
    "创办": Relation("开设 建起 开办 新开", "当家人 创办者"),
    "击败": Relation("战胜 赢过 胜过 击落", "对手 赢家"),
    "赞助": Relation("资助 供给 担负 付钱", "资助人 供给者"),
    "设计": Relation("画出 做样 出图 造型", "画师 设计师"),
    "建造": Relation("修起 盖好 施工 建成", "工人 修造者"),
    "出口": Relation("卖出 运走 外运 装船", "卖家 外运者"),
    "喜欢": Relation("爱上 着迷 看上 宠爱", "友人 爱人"),
    "翻译": Relation("译出 译完 翻出 译成", "译者 译员"),
    "饲养": Relation("喂大 养大 喂养 看养", "主人 养家"),
    "任职": Relation("聘请 请来 聘用 任用", "东家 用人者", True),
    "流经": Relation("流过 流入 穿过 流向", "河水 水流"),
    "主演": Relation("扮演 演出 出演 演完", "主角 演员"),
}
TASK = {
    "组成": Relation("装有 备有", "主机"),
    "部件故障": Relation("出现 发生", "坏件"),
    "检测工具": Relation("检查 测量", "量具", True),
    "治疗": Relation("治好 医治", "大夫"),
    "症状": Relation("引起 引发", "病因"),
    "作曲": Relation("谱写 写出", "作者"),
    "演唱": Relation("唱起 唱红", "歌手"),
    "产地": Relation("盛产 种出", "老家", True),
}
# Other words for TASK's relations: no lesson of the base has them either.
SYNONYMS = """
带有 内装 大件 突发 患上 病件 查看 量出 测具 对付 医好 良医
带来 生出 起因 谱成 写成 曲师 唱出 高唱 歌者 产出 生产 产家
"""
BASE_INSTRUCTION = "找出关系："
TASK_INSTRUCTION = "你现在是一个信息抽取模型，请抽取文本中的三元组，内部用_连接，之间用\\n分割。文本："


@dataclass(frozen=True)
class Pattern:
    frame: str
    cue: str
    relation: str
    reversed: bool


def patterns(world: dict[str, Relation], frames: Callable[[list[str]], list[str]] = list) -> list[Pattern]:
    """Every cue of a world in each of its kind's frames, of which `frames` may choose."""
    return [
        Pattern(frame, cue, name, relation.reversed)
        for name, relation in world.items()
        for cues, of_kind in ((relation.verbs, VERB_FRAMES), (relation.nouns, NOUN_FRAMES))
        for cue in cues.split()
        for frame in frames(of_kind)
    ]


def entities() -> tuple[list[str], list[str]]:
    """All invented names, shuffled once: those for training, those for testing."""
    names = [a + b for a in ENTITY_CHARACTERS for b in ENTITY_CHARACTERS if a != b]
    random.Random(0).shuffle(names)
    cut = int(len(names) * TEST_SHARE)
    return names[cut:], names[:cut]


def sentence(rng: random.Random, names: list[str], choices: list[Pattern]) -> tuple[str, str]:
    """One or two statements in a sentence, perhaps with clauses that state nothing, and the triples, one a line."""
    chosen = iter(rng.sample(names, 10))
    clauses, triples = [], []
    for _ in range(2 if rng.random() < 0.3 else 1):
        pattern, subject, object_ = rng.choice(choices), next(chosen), next(chosen)
        witness = rng.choice(WITNESSES) if rng.random() < 0.2 else ""
        witness = witness.format(x=next(chosen), y=next(chosen))
        clauses.append(witness + pattern.frame.format(a=subject, b=object_, c=pattern.cue))
        head, tail = (object_, subject) if pattern.reversed else (subject, object_)
        triples.append(f"{head}_{pattern.relation}_{tail}")
    if rng.random() < 0.3:
        distractor = rng.choice(DISTRACTORS).format(x=next(chosen), y=next(chosen))
        clauses.insert(rng.randint(0, len(clauses)), distractor)
    return rng.choice(OPENINGS) + rng.choice(JOINTS).join(clauses) + "。", "\n".join(triples)


def records(seed: int, count: int, names: list[str], choices: list[Pattern], instruction: str) -> list[dict[str, str]]:
    """`count` instruction/input/output records of different sentences."""
    rng, seen, rows = random.Random(seed), set(), []
    while len(rows) < count:
        text, output = sentence(rng, names, choices)
        if text not in seen:
            seen.add(text)
            rows.append({"instruction": instruction, "input": text, "output": output})
    return rows


def main() -> None:
    train_names, test_names = entities()
    trained = patterns(TASK, lambda frames: frames[:-HELD_OUT])
    held_out = patterns(TASK, lambda frames: frames[-HELD_OUT:])
    files = {
        "train.json": records(1, 6000, train_names, trained, TASK_INSTRUCTION),
        "test.json": records(2, 200, test_names, trained, TASK_INSTRUCTION),
        "test_new_patterns.json": records(3, 200, test_names, held_out, TASK_INSTRUCTION),
        "test_old_task.json": records(4, 200, test_names, patterns(BASE), BASE_INSTRUCTION),
    }
    for name, rows in files.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (Path(__file__).parent / name).write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(rows)} records")


if __name__ == "__main__":
    main()
