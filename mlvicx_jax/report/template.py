"""Pages of HTML: one environment and one stylesheet for all that this project writes."""

import jinja2


def render(package: str, **context) -> str:
    """The HTML of `package`'s own page.html; it includes the common style.html.

    Everything in `context` is escaped, and a name that it lacks is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package, ''), jinja2.PackageLoader(__package__, '')]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template('page.html').render(context)
