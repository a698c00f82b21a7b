"""One module a system: ``SYSTEM = "<system>"`` and ``ADAPTERS = {"<kind>": function taking a Case}``."""
