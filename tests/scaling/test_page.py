"""Pages of fits: every law has one, with its numbers, and nothing in it is fetched from a network."""

import re

import pytest
from test_plots import fitted

from ssljax.base.errors import UserError
from ssljax.scaling.laws import REGISTRY


@pytest.mark.parametrize("name", list(REGISTRY))
def test_every_law_has_a_page(name, tmp_path):
    fit = fitted(name)
    text = fit.page(tmp_path / "new/fit.html").read_text()
    assert text.count('class="plotly-graph-div"') >= 3 and not re.search(r'<(script|link)[^>]+(src|href)="', text)
    for parameter, value in fit.parameters.items():
        assert f"<td>{parameter}</td><td>{value:.5g}</td>" in text
    assert all(line in text.replace("&#39;", "'").replace("&gt;", ">") for line in fit.warnings)


def test_other_suffixes_are_refused():
    with pytest.raises(UserError, match=r"a.png: must end with .html"):
        fitted("power").page("a.png")
