"""Write train.json and dev.json: made-up clothes in the form of the ADGEN data, `content` and `summary`.

python -m examples.adgen.make_sample
"""

import json
import random
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIZES = {"train.json": 400, "dev.json": 40}
KINDS = {"裙": "这条裙子", "裤": "这条裤子", "上衣": "这件上衣", "外套": "这件外套"}
PARTS = {
    "颜色": {"红色": "红得热烈", "蓝色": "蓝得沉静", "白色": "白得干净", "黑色": "黑得稳重"},
    "材质": {"棉": "棉布柔软透气", "麻": "麻料清爽", "羊毛": "羊毛保暖", "牛仔布": "牛仔布结实耐穿"},
    "版型": {"宽松": "宽松不挑身材", "修身": "修身显瘦", "直筒": "直筒利落"},
    "图案": {"条纹": "条纹拉长身形", "格子": "格子很有学院味", "纯色": "纯色好搭配", "碎花": "碎花添一点春意"},
}


def record(draw: random.Random) -> dict[str, str]:
    """One piece of clothing: its features, and a sentence about them."""
    kind = draw.choice(list(KINDS))
    chosen = [(part, draw.choice(list(PARTS[part]))) for part in draw.sample(list(PARTS), draw.randint(2, 4))]
    content = "*".join([f"类型#{kind}", *(f"{part}#{value}" for part, value in chosen)])
    return {"content": content, "summary": KINDS[kind] + "，".join(PARTS[part][value] for part, value in chosen) + "。"}


def main() -> None:
    draw = random.Random(0)
    for name, count in SIZES.items():
        rows = (json.dumps(record(draw), ensure_ascii=False) + "\n" for _ in range(count))
        (HERE / name).write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
