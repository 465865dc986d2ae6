"""The clauses as they are read from the text of the specification, and the table that traces them."""

import pytest

import gspo_core
from gspo_conformance.clauses import clauses, read_clauses, specification
from gspo_conformance.formats import load_vectors
from gspo_conformance.traceability import holes, page

CLAUSE = """# A page
### GSPO-X-1 — A title {#GSPO-X-1}
**MUST** · testable

Text of the clause.

Code: `gspo_core.policy_loss`, `gspo_core.Clip` (`dual`)

```python
### GSPO-X-2 — not a clause {#GSPO-X-2}
```
"""


def test_every_clause_of_the_specification_is_read():
    written = sum(text.read_text("utf-8").count("\n### GSPO-") for text in specification().glob("*.md"))
    assert len(clauses()) == written > 90
    assert clauses()["GSPO-SURR-4"].level == "SHOULD"
    assert not clauses()["GSPO-DATA-5"].testable
    assert "exactly, the gate is 1" in clauses()["GSPO-SURR-4"].text


def test_a_clause_has_title_level_words_and_code(tmp_path):
    path = tmp_path / "x.md"
    path.write_text(CLAUSE, encoding="utf-8")
    (clause,) = read_clauses(path)
    assert (clause.id, clause.title, clause.level, clause.testable) == ("GSPO-X-1", "A title", "MUST", True)
    assert clause.code == ("gspo_core.policy_loss", "gspo_core.Clip")
    assert clause.text == "Text of the clause."
    assert clause.page == "x.md"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("{#GSPO-X-1}", "{#GSPO-X-7}", "expected the anchor GSPO-X-1"),
        ("**MUST** · testable", "**SHALL** · testable", "expected a line such as"),
        ("**MUST** · testable\n", "", "expected a line such as"),
    ],
)
def test_a_malformed_clause_is_an_error_that_says_where(tmp_path, before, after, message):
    path = tmp_path / "x.md"
    path.write_text(CLAUSE.replace(before, after), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_clauses(path)


def test_a_repeated_clause_is_an_error(tmp_path):
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text(CLAUSE, encoding="utf-8")
    with pytest.raises(ValueError, match="GSPO-X-1 more than once"):
        clauses(tmp_path)


def test_what_carries_a_clause_exists():
    for clause in clauses().values():
        for name in clause.code:
            found = gspo_core
            for part in name.removeprefix("gspo_core.").split("."):
                found = getattr(found, part)


def test_every_testable_clause_has_a_vector():
    assert holes() == []


def test_a_clause_without_vectors_is_a_hole():
    rest = [vector for vector in load_vectors() if "GSPO-KL-4" not in vector.clauses]
    assert "GSPO-KL-4" in holes(rest)


def test_the_table_has_a_row_for_every_clause_and_counts_its_vectors():
    text = page(load_vectors("sampling"))
    assert all(f"[{id_}]({clause.page}#{id_})" in text for id_, clause in clauses().items())
    (row,) = (line for line in text.splitlines() if "[GSPO-REWARD-6]" in line)
    assert "13 MUST, 1 SHOULD" in row
    assert "`informative_groups`" in row
