# %% [markdown]
# # A real masked language model
#
# AntiBERTy (Ruffolo, Gray and Sulam 2021) is a BERT of 25 million parameters, trained to fill in masked residues of
# antibody sequences. People redesign antibodies by masking, filling in and masking again: Gibbs sampling, as if the
# model's conditionals had a joint. Do they?
#
# The weights come with the package `antiberty` (`pip install 'flexgen-samplers[antiberty]'`), under its authors'
# licence. Any `AutoModelForMaskedLM` of Hugging Face transformers works the same way:
# `fg.adapters.MaskedLanguageModel`.

# %%
import itertools
import os
import time

import pandas as pd
import pictures
import torch
from IPython.display import Markdown

import flexgen as fg
from flexgen.compatibility import Values, check_tables, stationary

QUICK = bool(os.environ.get("FLEXGEN_NOTEBOOK_QUICK"))  # smaller numbers, for tests

# %% [markdown]
# Twelve heavy variable domains of 120 residues: the therapeutic antibody trastuzumab, and human germline V segments,
# each completed by one and the same end. They are no random sample of anything; intervals below say how much results
# differ between sequences like these.

# %%
TRASTUZUMAB = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDY"
    "WGQGTLVTVSS"
)
SEGMENTS = [
    "QVQLVQSGAEVKKPGASVKVSCKASGYTFTGYYMHWVRQAPGQGLEWMGWINPNSGGTNYAQKFQGRVTMTRDTSISTAYMELSRLRSDDTAVYYCAR",
    "QVQLVQSGAEVKKPGASVKVSCKASGYTFTSYGISWVRQAPGQGLEWMGWISAYNGNTNYAQKLQGRVTMTTDTSTSTAYMELRSLRSDDTAVYYCAR",
    "QVQLVQSGAEVKKPGASVKVSCKASGYTFTSYYMHWVRQAPGQGLEWMGIINPSGGSTSYAQKFQGRVTMTRDTSTSTVYMELSSLRSEDTAVYYCAR",
    "QVQLVQSGAEVKKPGSSVKVSCKASGGTFSSYAISWVRQAPGQGLEWMGGIIPIFGTANYAQKFQGRVTITADESTSTAYMELSSLRSEDTAVYYCAR",
    "EVQLVESGGGLVQPGGSLRLSCAASGFTFSSYWMSWVRQAPGKGLEWVANIKQDGSEKYYVDSVKGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCAR",
    "EVQLVESGGGLVKPGGSLRLSCAASGFTFSSYSMNWVRQAPGKGLEWVSSISSSSSYIYYADSVKGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCAR",
    "EVQLLESGGGLVQPGGSLRLSCAASGFTFSSYAMSWVRQAPGKGLEWVSAISGSGGSTYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYCAK",
    "QVQLVESGGGVVQPGRSLRLSCAASGFTFSSYAMHWVRQAPGKGLEWVAVISYDGSNKYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYCAR",
    "QVQLVESGGGVVQPGRSLRLSCAASGFTFSSYGMHWVRQAPGKGLEWVAVIWYDGSNKYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYCAR",
    "EVQLVESGGGLVQPGGSLRLSCAASGFTFSSYSMNWVRQAPGKGLEWVSYISSSSSTIYYADSVKGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCAR",
    "EVQLVQSGAEVKKPGESLKISCKGSGYSFTSYWIGWVRQMPGKGLEWMGIIYPGDSDTRYSPSFQGQVTISADKSISTAYLQWSSLKASDTAMYYCAR",
]
SEQUENCES = [TRASTUZUMAB, *(segment + "DGYSSGWYFDYWGQGTLVTVSS" for segment in SEGMENTS)]
LOOP = range(98, 109)  # CDR3, the loop that varies most and binds

mlm = fg.adapters.antiberty(num_sites=120)
x = mlm.encode(SEQUENCES)
letters = fg.adapters.AMINO_ACIDS
mlm

# %% [markdown]
# What the network says about each residue of trastuzumab's loop, given all the others: one masked residue a row, eleven
# forward passes. The circles are the residues that are there.

# %%
masked = torch.zeros(len(LOOP), 120, dtype=torch.bool)
masked[range(len(LOOP)), list(LOOP)] = True
answers = mlm.marginals(x[:1].expand(len(LOOP), -1), fg.Query(masked, ~masked)).log_probs
probabilities = answers[range(len(LOOP)), list(LOOP)].exp()  # [sites, residues]
pictures.residue_map(probabilities, x[0, list(LOOP)], letters, [f"{TRASTUZUMAB[site]}\n{site}" for site in LOOP])

# %% [markdown]
# ## One rectangle, by hand
#
# Take two neighbouring residues, G at 100 and D at 101, and exchange them for S and Y. How strongly do the two changes
# go together? The network gives two answers: how changing 101 changes the odds of 100, and how
# changing 100 changes those of 101. Each takes four log-probabilities. A joint has one log odds ratio.


# %%
def log_odds(site, other, residue):
    """log p(first residue) - log p(second) at a site, when another site holds some residue."""
    row = x[:1].clone()
    row[0, other] = letters.index(residue)
    log_p = mlm.marginals(row, fg.Query.complete(site, num_sites=120)).log_probs[0, site]
    first, second = PAIR[site]
    return float(log_p[letters.index(first)] - log_p[letters.index(second)])


PAIR = {100: "GS", 101: "DY"}
one = log_odds(100, 101, "D") - log_odds(100, 101, "Y")
other = log_odds(101, 100, "G") - log_odds(101, 100, "S")
print(f"from p(100 | 101, rest): {one:+.3f} nats")
print(f"from p(101 | 100, rest): {other:+.3f} nats")
print(f"gap:                     {one - other:+.3f} nats")

# %% [markdown]
# ## All pairs in the middle of the loop
#
# `fg.diagnose` does this for every pair of the five residues from 99 to 103, of which the network is least sure, in all
# twelve sequences, with another residue at each that the model itself finds plausible. It adds circulations and order
# gaps (see [how to read the report](02_is_my_masked_model_compatible.ipynb)). The budget is in forward passes, the
# currency in which a language model is paid.

# %%
report = fg.diagnose(
    mlm, x, sites=range(99, 104), values=Values(num_others=1), budget=120 if QUICK else 670, generator=0
)
report

# %%
report.plot()

# %% [markdown]
# ## What it does to a design loop
#
# Redesign three residues by Gibbs sampling, each among the six that the model finds likeliest there. That is few enough
# to evaluate every state: 216 of them, 108 forward passes. The exact checks compute the distribution that each scan
# ends in, without any sampling.

# %%
BLOCK, SIZE = (100, 101, 102), 3 if QUICK else 6
choices = [probabilities[LOOP.index(site)].topk(SIZE).indices.sort().values for site in BLOCK]
tables = []
for k, site in enumerate(BLOCK):
    others = [p for p in range(3) if p != k]
    states = torch.cartesian_prod(*(choices[p] for p in others))
    rows = x[:1].repeat(len(states), 1)
    rows[:, [BLOCK[p] for p in others]] = states
    log_p = mlm.marginals(rows, fg.Query.complete(site, num_sites=120)).log_probs[:, site, choices[k]]
    tables.append(log_p.softmax(1).view(SIZE, SIZE, SIZE).movedim(-1, k))  # p(residue | it is one of the six)
block = fg.exact.ConditionalTables(tables)
residues = {str(site): [letters[code] for code in codes] for site, codes in zip(BLOCK, choices, strict=True)}
print(check_tables(block, labels=residues))

# %%
orders = list(itertools.permutations(range(3)))
scans = {" ".join(str(BLOCK[k]) for k in order): order for order in orders} | {"random": "random"}
ends = {name: stationary(block, scan) for name, scan in scans.items()}
apart = pd.DataFrame({a: {b: 0.5 * float((p - q).abs().sum()) for b, q in ends.items()} for a, p in ends.items()})

first, second = apart.drop(index="random", columns="random").stack().idxmax()
change = (ends[second] - ends[first]).flatten()
most = change.abs().topk(8).indices
motifs = ["".join(residues[str(site)][k] for site, k in zip(BLOCK, code, strict=True)) for code in
          torch.stack(torch.unravel_index(most, (SIZE,) * 3), 1).tolist()]  # fmt: skip

probable = {name: ends[name].flatten()[most] for name in (first, second)}
pictures.scans_and_motifs(apart, motifs, probable)

# %% [markdown]
# ## Conclusion, in two sentences

# %%
gap = report.effects["rectangle gap"].uniform()  # as the yardstick is
forward, backward = report.directions["forward"], report.directions["backward"]
size = float((forward.abs() + backward.abs()).mean() / 2)
largest = apart.loc[first, second]
advice = "state the scan with every design" if largest > 0.02 else "the order hardly matters here"
Markdown(
    f"> That AntiBERTy's conditionals share a joint is **{report.verdict}**: in the middle of its CDR3 loop the two "
    f"directions of an interaction differ by {gap.value:.2f} nats ({gap.low:.2f} to {gap.high:.2f}), where they "
    f"measure {size:.2f} themselves. Gibbs sampling of three residues ends in distributions up to {largest:.2f} apart "
    f"in total variation, depending on nothing but the order of the scan, so {advice}.\n\n"
    f"{mlm.forwards.rows} forward passes in {mlm.forwards.batches} batches, {time.process_time():.0f} processor "
    "seconds in all. (The seconds in the report are the clock on the wall.)"
)
