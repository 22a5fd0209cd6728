"""Result files as one HTML page and as Markdown with pictures: ``python -m benchmarks report``.

``sources`` reads the files, ``blocks`` is what a document is made of, ``page`` and ``markdown`` write it.
``ops``, ``scaling`` and ``networks`` say what is in it for each kind of file, with numbers from ``figures``.
``bars``, ``roofline``, ``rates`` and ``curves`` draw, all in the same ``style``.
"""
