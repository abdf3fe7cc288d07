"""The one exception a user of this package has to know."""


class ConvwrightError(ValueError):
    """Bad input: a specification, file, array or setting that cannot be used.

    The message is one line and echoes the values that broke the rule.
    """
