import gzip
import json
import os
import random
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from encoding import encoded

from glmft.data import cache as module
from glmft.data import formats
from glmft.data.cache import Recipe, cached_rows, digests_of
from glmft.data.encode import Example, Lengths, Rules
from glmft.data.formats import Options, read_records
from glmft.errors import DataError
from glmft.family import FAMILIES
from glmft.tokenizers.loading import load_tokenizer

LENGTHS = Lengths(60, 30)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [{"instruction": f"云川{i}", "output": "岭溪" * (i % 30)} for i in range(300)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def key_of(files, recipe, tokenizer) -> str:
    read = [*files, Path(tokenizer.vocab_file)]
    return module.key_of(read, digests_of(read), recipe, tokenizer)


def recipe(**options) -> Recipe:
    return Recipe(Options(**options), Rules(LENGTHS))


@pytest.mark.parametrize("family", [*FAMILIES, "native-glm4"])
@pytest.mark.parametrize("workers", [1, 2])
def test_cached_rows_are_those_of_encoding_here(family, workers, data, all_folders, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 40)
    monkeypatch.setattr(module, "FEW", 80)
    tokenizer = load_tokenizer(all_folders[family])
    rows = cached_rows([data], recipe(), tokenizer, tmp_path / "cache", workers)
    want, report = encoded(read_records(data)[0], tokenizer, LENGTHS)
    assert list(rows) == want
    assert rows[3:5] == want[3:5]
    assert rows.report == report
    assert rows.lengths == [len(example.ids) for example in want]


def test_a_cache_is_made_once(data, tokenizer, tmp_path, monkeypatch):
    first = cached_rows([data], recipe(), tokenizer, tmp_path / "cache", 1)
    monkeypatch.setattr(module, "build", None)
    assert list(cached_rows([data], recipe(), tokenizer, tmp_path / "cache", 1)) == list(first)


def test_those_who_come_together_wait_for_one_build(data, tokenizer, tmp_path, monkeypatch):
    built, build = [], module.build
    monkeypatch.setattr(module, "build", lambda folder, *rest: built.append(folder) or build(folder, *rest))
    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(cached_rows, [data], recipe(), tokenizer, tmp_path / "cache", 1) for _ in range(4)]
        lengths = [len(job.result()) for job in work]
    assert lengths == [300] * 4
    assert len(built) == 1


def test_the_key_hangs_on_all_that_the_rows_hang_on(data, official_folders, tmp_path):
    glm2, glm3 = (load_tokenizer(official_folders[family]) for family in ("glm2", "glm3"))
    base = key_of([data], recipe(), glm2)
    assert base == key_of([data], recipe(), glm2)
    others = [
        key_of([data], recipe(input_separator=" "), glm2),
        key_of([data], Recipe(Options(), Rules(Lengths(61, 30))), glm2),
        key_of([data], Recipe(Options(), Rules(LENGTHS, "raw")), glm2),
        key_of([data], Recipe(Options(), Rules(LENGTHS, "default", "last")), glm2),
        key_of([data], recipe(), glm3),
        key_of([data, data], recipe(), glm2),
    ]
    with data.open("a", encoding="utf-8") as file:
        file.write('{"instruction": "新", "output": "行"}\n')
    assert len({base, *others, key_of([data], recipe(), glm2)}) == 8


def test_a_killed_build_leaves_no_broken_cache(data, tokenizer, tmp_path, monkeypatch):
    def killed(*args):
        yield next(chunks(*args))
        raise KeyboardInterrupt

    chunks = module.encoded_chunks
    monkeypatch.setattr(module, "CHUNK", 40)
    monkeypatch.setattr(module, "encoded_chunks", killed)
    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **options: None)  # as if there had been no time to tidy
    with pytest.raises(KeyboardInterrupt):
        cached_rows([data], recipe(), tokenizer, tmp_path / "cache", 1)
    monkeypatch.setattr(shutil, "rmtree", remove)
    monkeypatch.setattr(module, "encoded_chunks", chunks)
    assert len(cached_rows([data], recipe(), tokenizer, tmp_path / "cache", 1)) == 300
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name.startswith(".writing-")]


def test_bad_records_stop_the_build_or_are_kept_with_the_cache(data, tokenizer, tmp_path):
    with data.open("a", encoding="utf-8") as file:
        file.write("17\n")
    with pytest.raises(DataError, match=r"data\.jsonl:301: a int, not an object"):
        cached_rows([data], recipe(), tokenizer, tmp_path / "cache", 1)
    for _ in range(2):  # made, then found
        rows = cached_rows([data], recipe(on_bad_record="skip"), tokenizer, tmp_path / "cache", 1)
        assert len(rows) == 300
        assert [place.rsplit(":", 1)[1] for place, _ in rows.rejected] == ["301"]


def test_a_home_that_cannot_be_written_is_replaced(data, tokenizer, tmp_path):
    (tmp_path / "file").touch()
    assert len(cached_rows([data], recipe(), tokenizer, tmp_path / "file" / "cache", 1)) == 300


@pytest.fixture
def many_bad(tmp_path, monkeypatch):
    """Thirty records, every third of them bad, four in a chunk."""
    path = tmp_path / "bad.jsonl"
    outputs = ["3" if i % 3 == 0 else '"云"' for i in range(1, 31)]
    path.write_text("".join(f'{{"instruction": "a", "output": {output}}}\n' for output in outputs), encoding="utf-8")
    monkeypatch.setattr(module, "CHUNK", 4)
    return path


def test_skipped_records_never_end_the_reading_however_many_they_are(many_bad, tokenizer, tmp_path):
    rows = cached_rows([many_bad], recipe(on_bad_record="skip"), tokenizer, tmp_path / "cache", 1)
    assert [int(row.place.rsplit(":", 1)[1]) for row in rows] == [i for i in range(1, 31) if i % 3]
    assert [int(place.rsplit(":", 1)[1]) for place, _ in rows.rejected] == list(range(3, 31, 3))
    assert all("'output' is a int" in reason for _, reason in rows.rejected)
    assert (rows.report.read, rows.report.kept) == (20, 20)


def test_the_fifth_bad_record_ends_the_reading_where_none_may_be(many_bad, tokenizer, tmp_path, monkeypatch):
    encoded_chunks, encode = [], module.encode_chunk
    monkeypatch.setattr(module, "encode_chunk", lambda *args: encoded_chunks.append(args) or encode(*args))
    with pytest.raises(DataError) as caught:
        cached_rows([many_bad], recipe(), tokenizer, tmp_path / "cache", 1)
    [problem] = caught.value.problems
    assert problem.startswith(f"{many_bad}:3: ")
    assert problem.endswith("; the same at 6, 9, 12, 15")
    assert len(encoded_chunks) == 4  # lines 1 to 16
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_figures_of_all_chunks_come_together(tokenizer, tmp_path, monkeypatch):
    """The longest row is neither in the first chunk nor in the last."""
    monkeypatch.setattr(module, "CHUNK", 3)
    data = tmp_path / "data.jsonl"
    answers = ["云" * n for n in (2, 3, 1, 4, 20, 5, 3, 0, 1)]
    data.write_text("".join(json.dumps({"instruction": "a", "output": a}) + "\n" for a in answers), encoding="utf-8")
    rows = cached_rows([data], recipe(), tokenizer, tmp_path / "cache", 1)
    lengths = [len(row.ids) for row in rows]
    report = rows.report
    assert report.longest == max(lengths) == lengths[4] > max(lengths[3], lengths[5])
    assert (report.read, report.kept, report.empty_answers) == (9, 9, 1)
    assert (report.tokens, report.supervised) == (sum(lengths), sum(row.supervised for row in rows))
    middle = sorted(lengths)[4]
    assert report.lines()[1] == (
        f"data: {sum(lengths)} tokens, {report.supervised / sum(lengths):.1%} supervised; "
        f"length median {middle}, 95% {max(lengths)}, longest {max(lengths)}"
    )


def harmed(folder, draw: random.Random) -> str:
    """Cut, flip, grow, empty, remove or exchange one of a cache's files, or the whole folder; what was done."""
    path = folder / draw.choice([module.ROWS, module.SUMMARY, "seal.json"])
    kind = draw.choice(["cut", "flip", "grow", "empty", "remove", "folder", "link", "text", "all", "file"])
    data = path.read_bytes()
    if kind in ("all", "file"):
        shutil.rmtree(folder)
        (folder.mkdir if kind == "all" else folder.touch)()
        return kind
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(folder / "nowhere")
    elif kind != "remove":
        at = draw.randrange(len(data))
        flipped = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        made = {"cut": data[:at], "flip": flipped, "grow": data + b"{", "empty": b"", "text": b"[" * 100_000}
        path.write_bytes(made[kind])
    return f"{kind} {path.name}"


def test_a_damaged_cache_is_made_again_with_a_line(data, tokenizer, tmp_path):
    whole = cached_rows([data], recipe(), tokenizer, tmp_path / "cache", 1)
    want, folder = list(whole), tmp_path / "cache" / whole.key
    assert whole.notes == []
    draw = random.Random(5)
    for _ in range(60):
        kind = harmed(folder, draw)
        rows = cached_rows([data], recipe(), tokenizer, tmp_path / "cache", 1)
        assert list(rows) == want, kind
        assert len(rows.notes) == 1, kind
        assert rows.notes[0].startswith(f"warning: the encoded data in {folder} was damaged ("), kind
        assert len(rows.notes[0]) < 300
        assert cached_rows([data], recipe(), tokenizer, tmp_path / "cache", 1).notes == [], kind


@pytest.mark.parametrize(
    "forged",
    [
        Example([-1, 5], ((0, 1),), "forged:1"),
        Example([5, 10**6], ((0, 1),), "forged:1"),
        Example([5, 6], ((0, 3),), "forged:1"),
        Example([5, 6], ((-1, 1),), "forged:1"),
        Example([5, 6], ((1, 1),), "forged:1"),
        Example([5, 6, 7], ((1, 3), (0, 1)), "forged:1"),
        Example([5, 6, 7], ((0, 2), (1, 3)), "forged:1"),
        Example([5, 6], (), "forged:1"),
    ],
)
def test_rows_that_cannot_be_are_made_again_though_their_seal_fits(forged, data, tokenizer, tmp_path):
    from datasets import Features
    from datasets.arrow_writer import ArrowWriter

    whole = cached_rows([data], recipe(), tokenizer, tmp_path / "cache", 1)
    want, folder = list(whole), tmp_path / "cache" / whole.key
    with ArrowWriter(features=Features.from_arrow_schema(module.schema()), path=str(folder / module.ROWS)) as writer:
        writer.write_table(module.as_table([*want[:5], forged, *want[5:]]))
        writer.finalize()
    module.seal(folder)
    rows = cached_rows([data], recipe(), tokenizer, tmp_path / "cache", 1)
    assert list(rows) == want
    assert "ids or labels that cannot be" in rows.notes[0]


def test_sealed_rows_may_touch_and_fill_their_row(data, tokenizer, tmp_path):
    edges = [Example([5, 6, 7], ((0, 1), (1, 3)), "x:1"), Example([5], ((0, 1),), "x:2")]
    module.require_rows(module.as_table(edges), 8)


@pytest.mark.parametrize(("suffix", "workers"), [(".jsonl", 1), (".json", 1), (".json.gz", 2)])
def test_a_file_exchanged_while_it_is_read_is_not_cached_under_the_name_of_another(
    suffix, workers, tokenizer, tmp_path, monkeypatch
):
    def texts(word: str) -> bytes:
        rows = [{"instruction": f"云川{i}", "output": word} for i in range(300)]
        text = json.dumps(rows, ensure_ascii=False) if suffix != ".jsonl" else "\n".join(map(json.dumps, rows))
        return gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode()

    def exchanged_before(path, options):
        (tmp_path / "other").write_bytes(texts("溪"))
        os.replace(tmp_path / "other", path)
        return file_format(path, options)

    path, file_format = tmp_path / f"data{suffix}", formats.file_format
    path.write_bytes(texts("岭"))
    monkeypatch.setattr(module, "CHUNK", 40)
    monkeypatch.setattr(module, "FEW", 80)
    monkeypatch.setattr(formats, "file_format", exchanged_before)
    with pytest.raises(DataError, match=f"data{suffix}: changed while it was read"):
        cached_rows([path], recipe(), tokenizer, tmp_path / "cache", workers)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]
    monkeypatch.setattr(formats, "file_format", file_format)
    for word in ("岭", "溪"):
        path.write_bytes(texts(word))
        row = cached_rows([path], recipe(), tokenizer, tmp_path / "cache", 1)[0]
        assert word in tokenizer.decode(row.ids)


def test_a_temporary_cache_is_gone_as_soon_as_its_rows_are_open(data, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "file").touch()
    rows = cached_rows([data], recipe(), tokenizer, tmp_path / "file" / "cache", 1)
    assert not list((tmp_path / "tmp").iterdir())
    assert len(list(rows)) == 300
