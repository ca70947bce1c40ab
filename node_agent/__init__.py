"""The data plane of BRS: drivers, the restic engine and the agent that joins them.

Importing this package imports nothing else: the server reads ``node_agent.protocol`` and
``node_agent.errors`` and must not pay for, or depend on, the rest.
"""

__version__ = "0.1.0"
