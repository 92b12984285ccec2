"""What to cite: every key has its entry, and results name what made them."""

import numpy as np
import pytest
from click.testing import CliRunner

import linfb
from linfb import citations, cli, rules, theory

CLASSICS = {
    "bp": {"rumelhart1986"},
    "zero": set(),
    "fa": {"lillicrap2016", "jianbenna2024"},
    "sign": {"liao2016", "moskovitz2018"},
    "kp": {"kolenpollack1994", "akrout2019"},
    "weight-mirror": {"akrout2019"},
    "dfa": {"nokland2016", "launay2020"},
    "direct-low-rank": {"nokland2016"},
}


@pytest.mark.parametrize("name", rules.names)
def test_rules_have_their_references(name):
    assert set(citations.references_of(name)) == {citations.PAPER} | CLASSICS.get(name, set())
    assert citations.references_of(rules.constructor(name)) == citations.references_of(name)


def test_every_reference_has_an_entry():
    public = citations._public()
    assert {"exact_map", "Oja", "KolenPollack", "mlp", "simulate"} <= public.keys()
    for name, thing in public.items():
        keys = citations.references_of(thing)
        assert citations.cite(thing).count("\n@") == len(keys) - 1, name


def test_a_rule_is_cited_with_its_parts():
    rule = rules.low_rank(2, reader=rules.readers.Oja(), mirror=rules.mirrors.WeightMirror())
    parts = {"oja1989", "williams1985", "akrout2019"}
    assert set(citations.references_of(rule)) == {citations.PAPER} | parts
    fixed = rules.low_rank(2, reader=rules.readers.Fixed(), mirror=rules.mirrors.Fixed())
    assert not parts & set(citations.references_of(fixed))


def test_a_result_names_what_made_it(tmp_path):
    task, network = linfb.low_rank_teacher(4, 3, [1.0]), linfb.LinearNetwork((4, 3, 3), linfb.Balanced(0.1))
    result = linfb.simulate(task, network, rules.by_name("weight-mirror"), np.linspace(0, 1, 2))
    assert "akrout2019" in citations.references_of(result)
    assert "nokland2016" not in citations.references_of(result)
    result.to_netcdf(tmp_path / "result.nc", engine="h5netcdf")
    shown = CliRunner().invoke(cli.main, ["cite", str(tmp_path / "result.nc"), "theory.exact_map"])
    assert shown.exit_code == 0
    assert shown.output.strip() == citations.cite(result, theory.exact_map)
    assert shown.output.startswith("@misc{hanut2025,")
    assert "@inproceedings{fukumizu1998," in shown.output


def test_unknown_names_and_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"name must be a public one .* got 'exact'"):
        linfb.cite("exact")
    with pytest.raises(TypeError, match=r"used must be of linfb.* got 3"):
        linfb.cite(3)
    for used, words in (("exact", "got 'exact'"), (str(tmp_path / "none.nc"), "cannot read")):
        answer = CliRunner().invoke(cli.main, ["cite", used])
        assert (answer.exit_code, words in answer.output) == (2, True)
    (tmp_path / "text.nc").write_text("no netCDF")
    assert CliRunner().invoke(cli.main, ["cite", str(tmp_path / "text.nc")]).exit_code == 2
    assert CliRunner().invoke(cli.main, ["cite"]).output.count("@") == 1
