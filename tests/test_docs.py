"""The documentation holds: every option is described, and the page of options is current."""

import pytest

from irpo_nemo.config import IRPOConfig, walk_fields
from tools.options_page import PAGE, field_documentation, make_page


@pytest.mark.parametrize(("key", "schema"), [(key, schema) for key, _, schema in walk_fields(IRPOConfig)])
def test_every_option_says_what_it_does(key: str, schema: type) -> None:
    assert field_documentation(schema).get(key.rsplit(".", 1)[-1]), f"{key}: add a docstring below it in config.py"


def test_the_page_of_options_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == make_page(), "run: python tools/options_page.py"
