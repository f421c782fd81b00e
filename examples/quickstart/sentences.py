"""A deterministic generator of Chinese sentences about invented things, with the triples that stand in them.

Two worlds share one grammar of sentences but no relation, no pattern and no instruction: `BASE` is what the tiny base
model is pre-trained on, `TASK` is what it is fine-tuned for. Of each TASK relation the last patterns are held out, so
that a test can ask for sentences never trained. Entities are two invented characters' names; those for testing appear
nowhere in training.

    python -m examples.quickstart.sentences        # writes train.json, test.json, test_new_patterns.json beside it
"""

import json
import random
from pathlib import Path

ENTITY_CHARACTERS = (
    "云川岭溪泉峰湖岛林松柏梅兰竹菊荷莲桃杏梨枫桐槐柳榆鹤雁鹭鸥隼虎豹鹿麟鲸星辰曦晨暮霞虹霜雪露雷岚玉珠琥珀"
    "瑶琳璃琪瑞祥福禄寿康宁泰安平顺达通远博睿哲思慧敏锐健勇毅诚信义廉洁素雅淡青紫朱墨银铜锡钢磐岩砂瓷锦绣绫纱帆舟桨"
)
TEST_SHARE = 0.1

# relation: patterns; {h} is the head, {t} the tail.
BASE = {
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
TASK = {
    "部件故障": [
        "{h}突然{t}，车子停下",
        "检修时看到{h}有{t}",
        "司机说{h}{t}",
        "{h}坏了，样子是{t}",
        "因为{h}{t}，车进了厂",
    ],
    "组成": ["{h}里面装有{t}", "{t}是{h}的一个零件", "拆开{h}可见{t}", "{h}少不了{t}", "厂家把{t}装进{h}"],
    "检测工具": ["技师拿{t}查{h}", "查{h}要用{t}", "{t}专门量{h}", "用{t}看看{h}", "{h}要靠{t}来量"],
    "治疗": ["{h}能治{t}", "得了{t}可以吃{h}", "医生开{h}来对付{t}", "{t}的病人用了{h}", "{h}对{t}有效"],
    "症状": ["患{h}的人会{t}", "{t}多半是{h}引起的", "{h}发作时常见{t}", "得了{h}便{t}", "{h}让人{t}"],
    "作曲": ["{h}为歌曲{t}谱曲", "歌曲{t}的旋律是{h}写的", "{h}写下名曲{t}", "名曲{t}是{h}的", "{h}谱了{t}"],
    "演唱": ["歌手{h}唱了{t}", "{t}由歌手{h}唱红", "{h}在台上唱起{t}", "台上的{h}唱{t}", "歌手{h}带来{t}"],
    "产地": ["{h}产自{t}", "{t}盛产{h}", "市场上的{h}来自{t}", "{h}是{t}的特产", "{t}种出了{h}"],
}
HELD_OUT = 2  # the last patterns of each TASK relation are never trained
OPENINGS = ["", "", "", "据说", "听说", "今天", "去年", "后来", "大家都知道", "新闻里说", "记者写道", "书上写着"]
JOINTS = ["，", "；", "，而且", "，同时", "。另外"]
BASE_INSTRUCTION = "找出关系："
TASK_INSTRUCTION = "你现在是一个信息抽取模型，请抽取文本中的三元组，内部用_连接，之间用\\n分割。文本："


def entities() -> tuple[list[str], list[str]]:
    """All invented names, shuffled once: those for training, those for testing."""
    names = [a + b for a in ENTITY_CHARACTERS for b in ENTITY_CHARACTERS if a != b]
    random.Random(0).shuffle(names)
    cut = int(len(names) * TEST_SHARE)
    return names[cut:], names[:cut]


def sentence(rng: random.Random, names: list[str], patterns: dict[str, list[str]]) -> tuple[str, str]:
    """One or two statements in a sentence, and their triples, one a line."""
    count = 2 if rng.random() < 0.3 else 1
    chosen = rng.sample(names, 2 * count)
    clauses, triples = [], []
    for head, tail in zip(chosen[::2], chosen[1::2], strict=True):
        relation = rng.choice(list(patterns))
        clauses.append(rng.choice(patterns[relation]).format(h=head, t=tail))
        triples.append(f"{head}_{relation}_{tail}")
    return rng.choice(OPENINGS) + rng.choice(JOINTS).join(clauses) + "。", "\n".join(triples)


def records(seed: int, count: int, names: list[str], patterns: dict[str, list[str]]) -> list[dict[str, str]]:
    """`count` instruction/input/output records of different sentences."""
    rng, seen, rows = random.Random(seed), set(), []
    while len(rows) < count:
        text, output = sentence(rng, names, patterns)
        if text not in seen:
            seen.add(text)
            rows.append({"instruction": TASK_INSTRUCTION, "input": text, "output": output})
    return rows


def main() -> None:
    train_names, test_names = entities()
    trained = {relation: patterns[:-HELD_OUT] for relation, patterns in TASK.items()}
    held_out = {relation: patterns[-HELD_OUT:] for relation, patterns in TASK.items()}
    files = {
        "train.json": records(1, 4000, train_names, trained),
        "test.json": records(2, 200, test_names, trained),
        "test_new_patterns.json": records(3, 200, test_names, held_out),
    }
    for name, rows in files.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (Path(__file__).parent / name).write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(rows)} records")


if __name__ == "__main__":
    main()
