"""word2vec (Mikolov et al. 2013): vectors of the pieces of words of English news, told from random pieces.

`form=cbow` predicts a word from the words around it, `skip_gram` the words around from the word. News are read in a
vocabulary of 4,000 pieces, of which the frequent ones are whole words; books (`data=classic-books`) in one of 2,000.

    ssljax train --config configs/text/word2vec.py --workdir runs/word2vec
    ssljax train --config configs/text/word2vec.py:form=cbow --workdir runs/cbow
    ssljax train --config configs/text/word2vec.py:data=classic-books --workdir runs/word2vec-books
    ssljax train --config configs/text/word2vec.py:data=files --workdir runs/x --config.data.source=text:DIR/*.txt

Time: 2 minutes on one CPU core for news.
Result: accuracy of a linear probe among four topics of held-out news: 0.750 (random vectors 0.500); docs/results.md,
section 1.
"""

import _texts

from ssljax.config import arguments


def get_config(arg=""):
    a = arguments(arg, data=("ag-news", "classic-books", "files"), form=("skip_gram", "cbow"))
    model, objective = dict(name="word_vectors", width=96), dict(name="word2vec", form=a["form"])
    made = _texts.config(a["data"], model, objective, 300, text=_texts.PIECES, batch_size=64)
    # A step moves each vector little, and most tokens are rare: the rate is high, and vectors do not decay meanwhile.
    made.optimizer.update(learning_rate=0.02, weight_decay=0.0)
    return made
