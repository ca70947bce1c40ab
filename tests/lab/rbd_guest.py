"""What writes to images in the tests, beside the code that is tested: run by the system's Python, commands on stdin.

{"image": "vm", "do": [["write", offset, length, byte], ["discard", offset, length], ["resize", size], …]}
"""

import json
import random
import sys

import rados
import rbd


def run(image, do):
    for verb, *given in do:
        if verb == "write":
            offset, length, seed = given
            image.write(random.Random(seed).randbytes(length), offset)
        elif verb == "discard":
            image.discard(*given)
        elif verb == "resize":
            image.resize(given[0], allow_shrink=True)
        elif verb == "snapshot":
            image.create_snap(given[0])
        elif verb == "remove-snapshot":
            image.remove_snap(given[0])
        elif verb == "rollback":
            image.rollback_to_snap(given[0])
        elif verb == "flatten":
            image.flatten()
        elif verb == "wait":  # holding the image open
            print("open", flush=True)
            sys.stdin.readline()


def alternate(images):
    """A counter into one image after the other, each write done before the next begins, until a line comes."""
    import threading

    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), ended.set()), daemon=True).start()
    print("writing", flush=True)
    number = 0
    while not ended.is_set():
        number += 1
        for image in images:
            image.write(number.to_bytes(8, "big"), 0)
    for image in images:
        image.close()  # or librbd is still at work on it when its cluster goes, and aborts
    print(number, flush=True)


def main():
    order = json.loads(sys.stdin.readline())
    conf = {"mon_host": order["mon"], "key": order["key"], "rbd_skip_partial_discard": "false"}
    with rados.Rados(name="client.admin", clustername="ceph", conf=conf) as cluster, cluster.open_ioctx("rbd") as pool:
        if "create" in order:
            rbd.RBD().create(pool, order["create"], order["size"], old_format=False, features=order["features"])
        elif "alternate" in order:
            alternate([rbd.Image(pool, name) for name in order["alternate"]])
        else:
            with rbd.Image(pool, order["image"]) as image:
                run(image, order["do"])


main()
