"""The style sheet of the report's page: one screen of answer, the rest folded; light and dark, phone and paper.

Text and lines keep a contrast of at least 4.5 to their ground in both schemes. Judgements have a word and a colour each
(those of Okabe and Ito). Figures are drawn on white; in the dark their lightness is turned over and their hues stay.
"""

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #16181d; --soft: #4d535e; --line: #d4d7dd; --raised: #f4f5f7; --link: #0b57a4;
  --pass: #00785a; --warn: #8a5a00; --fail: #b34300; --unknown: #4c5a78; --pass-ground: #e3f4ee; --warn-ground: #fdf1d9; --fail-ground: #fde8dc; --unknown-ground: #e9edf5; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ground: #191919; --text: #e8e8e8; --soft: #b4b8bf; --line: #43464c; --raised: #242527; --link: #7db8f2;
    --pass: #4fd0a5; --warn: #f0b64a; --fail: #ff9264; --unknown: #a9b9dc; --pass-ground: #14352b; --warn-ground: #3a2c0f; --fail-ground: #43200f; --unknown-ground: #252c3b; }
  figure img { filter: invert(0.9) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--text); background: var(--ground); }
main { max-width: 76rem; margin: 0 auto; padding: 1rem 1.25rem 3rem; }
h1 { font-size: 1.35rem; line-height: 1.25; margin: 0 0 .4rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: .6rem 0; max-width: 62rem; } ul { margin: .5rem 0; padding-left: 1.2rem; } li { margin: .15rem 0; max-width: 62rem; }
a { color: var(--link); text-decoration: underline; text-decoration-thickness: 1px; text-underline-offset: 2px; }
th a, td a, summary a { color: inherit; text-decoration-style: dotted; }
code { font-size: .92em; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: .1rem 1.4rem; margin: 0 0 .7rem; color: var(--soft); font-size: .87rem; }
.facts div { display: flex; gap: .4rem; } .facts dt::after { content: ":"; } .facts dd { margin: 0; color: var(--text); overflow-wrap: anywhere; }
.verdict { display: flex; gap: 1rem; align-items: baseline; padding: .55rem .9rem; border-left: .5rem solid; border-radius: .25rem; margin: 0 0 .8rem; }
.verdict .word { font-weight: 700; font-size: 1.05rem; text-transform: uppercase; letter-spacing: .03em; flex: none; max-width: 18rem; }
.verdict p { margin: 0; font-size: 1.05rem; color: var(--text); max-width: none; }
.pass .word, tr.pass td:nth-child(4) { color: var(--pass); } .warn .word, tr.warn td:nth-child(4) { color: var(--warn); }
.fail .word, tr.fail td:nth-child(4) { color: var(--fail); } .cannot_judge .word, tr.cannot_judge td:nth-child(4) { color: var(--unknown); }
.verdict.pass { border-color: var(--pass); background: var(--pass-ground); } .verdict.warn { border-color: var(--warn); background: var(--warn-ground); }
.verdict.fail { border-color: var(--fail); background: var(--fail-ground); }
.verdict.cannot_judge { border-color: var(--unknown); border-left-style: double; background: var(--unknown-ground); }
.judged td:nth-child(2), .judged td:nth-child(4) { font-weight: 700; }
.pair { display: grid; grid-template-columns: minmax(0, 1.42fr) minmax(0, 1fr); gap: 0 1.6rem; align-items: start; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 0 1.6rem; }
figure { margin: .5rem 0 1rem; break-inside: avoid; } figure img { display: block; width: 100%; max-width: 36rem; height: auto; }
figcaption { font-size: .84rem; color: var(--soft); margin-top: .25rem; max-width: 36rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; margin: .5rem 0; }
th, td { padding: .22rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { border-bottom: 2px solid var(--soft); vertical-align: bottom; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } td.n { white-space: nowrap; }
td:last-child:not(.n) { min-width: 14rem; }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--ground); white-space: nowrap; }
.judged { font-size: .88rem; width: 100%; } .judged th, .judged td { padding: .3rem .5rem; white-space: nowrap; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; padding: .5rem 0; margin: .6rem 0; border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); font-size: .9rem; }
details { border-bottom: 1px solid var(--line); } details > :not(summary) { margin-left: 1.1rem; }
.target { scroll-margin-top: 4rem; }
details.nested { border-bottom: none; margin: .6rem 0; }
summary { cursor: pointer; padding: .5rem 0; font-weight: 600; } summary .about { font-weight: 400; color: var(--soft); margin-left: .4rem; }
dl.terms dt { font-weight: 600; margin-top: .6rem; scroll-margin-top: 1rem; } dl.terms dd { margin: 0 0 0 1.1rem; max-width: 62rem; }
:target { outline: 2px solid var(--link); outline-offset: 3px; }
@media (max-width: 60rem) { .pair { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 34rem) {
  main { padding: .7rem .7rem 2rem; } h1 { font-size: 1.12rem; } .verdict { display: block; padding: .5rem .7rem; } .verdict p { font-size: .98rem; }
  .facts { font-size: .8rem; } th, td { padding: .2rem .38rem; } .judged { font-size: .8rem; } .judged th, .judged td { padding: .3rem .3rem; } .judged th:first-child { white-space: normal; } details > :not(summary) { margin-left: 0; }
  td:first-child { white-space: normal; min-width: 4.6rem; }
}
@media print {
  @page { size: A4; margin: 13mm; }
  :root { color-scheme: light; }
  main { max-width: none; padding: 0; } body { font-size: 9.5pt; } h1 { font-size: 14pt; } nav { display: none; }
  .verdict { print-color-adjust: exact; -webkit-print-color-adjust: exact; } .verdict p { font-size: 10.5pt; }
  .pair { display: block; } .pair figure img { max-width: 16cm; } .figures { grid-template-columns: 1fr 1fr; }
  details::details-content { content-visibility: visible; display: block; height: auto; } summary { list-style: none; break-after: avoid; padding-top: 1rem; font-size: 11pt; }
  tr, figure { break-inside: avoid; } h3 { break-after: avoid; } .wide { overflow: visible; } table { font-size: 7.2pt; } .judged { font-size: 9.5pt; }
  th, td { padding: .1rem .35rem; } td:first-child, th:first-child { position: static; white-space: normal; } td:last-child:not(.n) { min-width: 0; } a { color: inherit; text-decoration: none; }
}
"""
