"""The style sheet of a report: wide and narrow, light and dark, screen and paper.

Kept is blue, dropped orange. The two differ in hue for color-blind readers and in lightness for
grayscale: kept is always the one with the stronger contrast to the background.
"""

from __future__ import annotations

CSS = (
    """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f5f6f8; --ink: #1b1f24; --soft: #59636e; --rule: #d8dde3;
  --kept: #14508c; --dropped: #e69f4c; --rejected: #8f979f; --neutral: #4d7ea8;
  --mark: #1b1f24; --alarm: #8a2a0b; --alarm-paper: #fdf0e8; --fine-paper: #eef4fa;
  --a0: #5a6067; --a1: #0b5fa5; --a2: #b3480a; --a3: #00795c; --a4: #9b3f84; --a5: #7a6400;
  --a6: #2b7c9a; --a7: #a02c2c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --panel: #1d2226; --ink: #e8eaed; --soft: #a5aeb8; --rule: #363d45;
    --kept: #8cc4f7; --dropped: #a8672a; --rejected: #6d757d; --neutral: #7ba9d0;
    --mark: #f4f5f7; --alarm: #ffb08a; --alarm-paper: #3a2017; --fine-paper: #1a2733;
    --a0: #b3bac2; --a1: #6db3f2; --a2: #f2975a; --a3: #4fcba6; --a4: #dd8fca; --a5: #d8bd4e;
    --a6: #7fd3ea; --a7: #f08f8f;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1.25rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 {
  font-size: 1.25rem;
  margin: 2.5rem 0 .8rem;
  padding-top: .8rem;
  border-top: 1px solid var(--rule);
}
h3, figcaption strong { font-size: 1rem; font-weight: 600; margin: 0; }
p { margin: .4rem 0; max-width: 46rem; }
.lead { font-size: 1.1rem; margin: 0 0 1rem; max-width: 52rem; }
.soft, .caption { color: var(--soft); font-size: .875rem; margin: .15rem 0 .5rem; }

.warnings {
  background: var(--alarm-paper);
  border-left: .3rem solid var(--alarm);
  padding: .7rem 1rem;
  margin: 0 0 1.2rem;
}
.warnings h2 { color: var(--alarm); border: 0; margin: 0; padding: 0; font-size: 1rem; }
.warnings ul { margin: .3rem 0 0; padding-left: 1.2rem; }
.warnings li { margin: .25rem 0; }
.fine {
  max-width: none;
  background: var(--fine-paper);
  border-left: .3rem solid var(--kept);
  padding: .5rem 1rem;
  margin: 0 0 1.2rem;
}

.tiles {
  display: grid;
  grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: .75rem;
  margin: 0 0 .75rem;
}
.tile {
  background: var(--panel);
  border-top: .25rem solid var(--rule);
  padding: .6rem .8rem .7rem;
}
.tile dt { color: var(--soft); font-size: .875rem; }
.tile dd { margin: 0; }
.tile .value {
  font-size: 1.4rem;
  font-weight: 650;
  line-height: 1.25;
}
.tile .note { color: var(--soft); font-size: .875rem; }
.tile.kept { border-top-color: var(--kept); }
.tile.dropped { border-top-color: var(--dropped); }
.tile.rejected { border-top-color: var(--rejected); }

.blocks {
  display: grid;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 1.75rem 2.25rem;
  align-items: start;
}
.blocks > * { min-width: 0; margin: 0; }
.blocks > .wide, .columns > .wide { grid-column: 1 / -1; }
figure svg.chart, figure > svg { display: block; width: 100%; max-width: 34rem; height: auto; }
svg.division { width: 100%; height: .75rem; display: block; }
svg.bar { width: 100%; height: 1rem; min-width: 5rem; display: block; }
svg.interval { width: 100%; min-width: 6rem; max-width: 20rem; height: auto; display: block; }

svg text { font-size: 12px; fill: var(--ink); font-family: inherit; }
svg text.tick, svg text.name { fill: var(--soft); }
svg text.direct { font-weight: 600; }
.grid { stroke: var(--rule); stroke-width: 1; }
.axis { stroke: var(--soft); stroke-width: 1; }
.mark { stroke: var(--mark); stroke-width: 1.5; stroke-dasharray: 4 3; }
.leader { stroke: var(--soft); stroke-width: .75; }
.fill-kept { fill: var(--kept); }
.fill-dropped { fill: var(--dropped); }
.fill-rejected { fill: var(--rejected); }
.fill-neutral { fill: var(--neutral); }
.track { fill: var(--panel); }
.dot { stroke: var(--paper); stroke-width: 1.5; }
.heat { fill: var(--neutral); }
.heat-0 { fill-opacity: .14; }
.heat-1 { fill-opacity: .28; }
.heat-2 { fill-opacity: .42; }
.heat-3 { fill-opacity: .56; }
.heat-4 { fill-opacity: .7; }
.heat-5 { fill-opacity: .85; }
.median { fill: none; stroke: var(--ink); stroke-width: 2.25; }
.median-edge { fill: none; stroke: var(--paper); stroke-width: 5; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.band { fill-opacity: .16; }
.curve.arm-0 { stroke-dasharray: 6 3; }
.curve.arm-2, .curve.arm-5 { stroke-dasharray: 10 2; }
.curve.arm-3, .curve.arm-6 { stroke-dasharray: 2 2; }
.curve.arm-4, .curve.arm-7 { stroke-dasharray: 9 2 2 2; }
"""
    + "".join(
        f".curve.arm-{index} {{ stroke: var(--a{index}); }} "
        f".band.arm-{index}, svg text.arm-{index} {{ fill: var(--a{index}); }}\n"
        for index in range(8)
    )
    + """
table { border-collapse: collapse; width: 100%; font-size: .9375rem; overflow-wrap: break-word; }
th, td {
  text-align: right;
  padding: .28rem .5rem;
  border-bottom: 1px solid var(--rule);
  vertical-align: middle;
}
th { font-weight: 600; color: var(--soft); font-size: .8125rem; vertical-align: bottom; }
td { white-space: nowrap; }
th:first-child, td:first-child {
  text-align: left; padding-left: 0; overflow-wrap: anywhere; min-width: 10rem;
}
td:last-child, th:last-child { padding-right: 0; }
tbody th { font-weight: 400; color: var(--ink); font-size: inherit; vertical-align: middle; }
td.picture, th.picture { width: 30%; text-align: left; }
figure.bars { max-width: 46rem; }
.many td { white-space: normal; }
.cards th:first-child { overflow-wrap: break-word; }
.cards td.picture, .cards th.picture { width: 24%; }
.ends { display: flex; justify-content: space-between; font-weight: 400; }
.scroll { overflow-x: auto; }
details { font-size: .875rem; margin: .4rem 0; }
summary { color: var(--soft); cursor: pointer; }

dl.facts {
  display: grid;
  grid-template-columns: fit-content(20rem) 1fr;
  gap: .2rem 1.2rem;
  margin: 0;
  font-size: .9375rem;
}
dl.facts dt { color: var(--soft); }
dl.facts dd { margin: 0; }

ol.excerpts { list-style: none; margin: .5rem 0 0; padding: 0; }
ol.excerpts > li {
  border-top: 1px solid var(--rule);
  padding: .6rem 0 .7rem;
  break-inside: avoid;
}
.excerpt-head {
  display: flex;
  flex-wrap: wrap;
  gap: .1rem .9rem;
  align-items: baseline;
  font-size: .875rem;
  color: var(--soft);
  margin: 0;
  max-width: none;
}
.excerpt-head > * { min-width: 0; }
.excerpt-head .score { color: var(--ink); font-weight: 650; font-size: 1rem; }
.badge { border-left: .55rem solid var(--rule); padding-left: .35rem; color: var(--ink); }
.badge.kept { border-color: var(--kept); }
.badge.dropped { border-color: var(--dropped); }
.text {
  margin: .35rem 0 0;
  padding: .5rem .7rem;
  background: var(--panel);
  overflow: hidden;
  contain: paint;
  white-space: pre-wrap;
  unicode-bidi: isolate;
  font-size: .875rem;
  line-height: 1.45;
  tab-size: 4;
}
.columns {
  display: grid;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr));
  gap: 1.5rem 2rem;
  align-items: start;
}
.columns > * { min-width: 0; }
footer {
  margin-top: 2.5rem;
  padding-top: .8rem;
  border-top: 1px solid var(--rule);
  color: var(--soft);
  font-size: .8125rem;
}
footer p { margin: .15rem 0; max-width: none; }

@media (max-width: 34rem) {
  main { padding: 1rem .9rem 2rem; }
  h1 { font-size: 1.4rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .5rem; }
  .tile { padding: .45rem .6rem .5rem; }
  .tile .value { font-size: 1.25rem; }
  dl.facts { grid-template-columns: 1fr; gap: 0; }
  dl.facts dd { margin-bottom: .45rem; }
  td.picture, th.picture { width: 20%; }
  .bars table { font-size: .8125rem; }
  .bars .ends { display: none; }
  th:first-child, td:first-child { min-width: 8.25rem; }
  svg.bar { min-width: 2.5rem; }
  th, td { padding-left: .3rem; padding-right: .3rem; }
  table { font-size: .875rem; }
}
@media screen and (max-width: 52rem) {
  .cards thead { display: none; }
  .cards table, .cards tbody { display: block; }
  .cards tr { display: block; padding: .4rem 0; border-bottom: 1px solid var(--rule); }
  .cards th, .cards td { display: block; border: 0; padding: .1rem 0; }
  .cards tbody th { font-weight: 600; }
  .cards td { display: flex; justify-content: space-between; gap: 1rem; white-space: normal; }
  .cards td:empty { display: none; }
  .cards td::before { content: attr(data-name); color: var(--soft); text-align: left; }
  .cards td.picture { width: 100%; }
  .cards td.picture::before { content: none; }
}
@media print {
  :root {
    --paper: #ffffff; --panel: #f5f6f8; --ink: #000000; --soft: #444444; --rule: #bbbbbb;
    --kept: #14508c;
    --dropped: #e69f4c;
    --rejected: #8f979f;
    --neutral: #4d7ea8;
    --mark: #000000;
    --alarm: #8a2a0b; --alarm-paper: #fdf0e8; --fine-paper: #eef4fa;
    --a0: #5a6067; --a1: #0b5fa5; --a2: #b3480a; --a3: #00795c; --a4: #9b3f84; --a5: #7a6400;
    --a6: #2b7c9a; --a7: #a02c2c;
  }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  :root { font-size: 9.5pt; }
  main { max-width: none; padding: 0; }
  figure, .tile, tr, .warnings { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; }
  details { display: none; }
  .blocks { grid-template-columns: 1fr 1fr; }
  .columns { grid-template-columns: 1fr 1fr 1fr; gap: 1rem; }
  .text { font-size: 7.5pt; }
  svg.bar { min-width: 3rem; }
}
"""
)
