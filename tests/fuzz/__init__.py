"""What is read back from a store is fed with damage: it may be refused, but never crash, hang or eat the memory.

    python -m tests.fuzz --seconds 60          random mutations of real files, under limits of memory and time
    python -m tests.fuzz --seconds 60 --atheris tree    guided by coverage, one target (needs ``pip install atheris``)

A target takes bytes and does with them what the program does: parse, show, restore. Sealed files are opened and sealed
again around the mutation, so that damage gets past the authentication, as that of somebody who has the key would.
"""
