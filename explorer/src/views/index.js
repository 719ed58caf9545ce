// All views in the order of the navigation. A view is one file with:
//   name       its part of the address      title, key   in the navigation
//   sections   of the document that it reads: of an artifact, or, with isOfReport, of the whole report
//   isFor(index, subject)   whether the report has it
//   entries(data)           for the search: [{ label, kind, text, path }]
//   Component({ data, parts, subject, report, go, link })
import { blockView } from "./block.js";
import { compareView } from "./compare.js";
import { designView } from "./design.js";
import { evaluationView } from "./evaluation.js";
import { expertsView } from "./experts.js";
import { kernelView } from "./kernel.js";
import { mapView } from "./map.js";
import { passesView } from "./passes.js";
import { rooflineView } from "./roofline.js";
import { sweepView } from "./sweep.js";
import { timelineView } from "./timeline.js";
import { whyView } from "./why.js";

export const views = [
  mapView,
  blockView,
  expertsView,
  kernelView,
  timelineView,
  passesView,
  whyView,
  rooflineView,
  designView,
  compareView,
  sweepView,
  evaluationView,
];
