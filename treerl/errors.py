"""The few exceptions of treerl, split by who must act. What a model got wrong is data, not an exception."""


class TreerlError(Exception):
    """Root of all errors raised on purpose; the CLI prints its message without a traceback."""


class ConfigError(TreerlError):
    """The recipe or the command line asks for something that cannot be; the user edits it."""


class DataError(TreerlError):
    """An input file or data set cannot be read as asked; the message names file, line and column."""


class Interrupted(TreerlError):
    """The user stopped a run (Ctrl-C); the message has the command that goes on with it."""


class SamplerError(TreerlError):
    """The sampler cannot continue (engine lost, weights broken, prefix longer than its context)."""


class DoesNotFit(SamplerError):
    """One continuation exceeds what the sampler can ever hold; the others can be made."""


class HandoverError(SamplerError):
    """What the sampler serves is not what the trainer sent; the run stops, and nothing stored is wrong."""


class UpdateError(TreerlError):
    """The optimizer step cannot be taken (NaN loss or gradient); weights are left as they were."""


class StoreError(TreerlError):
    """The replay database cannot be read or written; nothing that was acknowledged is lost."""


class SchemaMismatch(StoreError):
    """The database was made by another version of treerl; the message has the command that helps."""


class LeaseLost(StoreError):
    """Another worker has taken over the tree that this one claimed; nothing of it was written."""
