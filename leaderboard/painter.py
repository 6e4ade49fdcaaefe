"""Draws charts for `leaderboard.drawing`, in a process of its own: a line of JSON on stdin, one on stdout."""

from __future__ import annotations

import json
import signal
import sys

import vl_convert


def main() -> None:
    """Answer [what, text] with [True, result] or [False, error], until the other side has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks decides what an interrupt means
    for line in sys.stdin:
        what, text = json.loads(line)
        try:
            if what == "svg":
                answer = [True, vl_convert.vegalite_to_svg(text, allowed_base_urls=[])]
            else:
                answer = [True, vl_convert.javascript_bundle(text)]
        except ValueError as error:
            answer = [False, str(error)]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
