// All views in the order of the navigation. A view is one file with:
//   name       its part of the address      title, key   in the navigation
//   sections   of the document that it reads
//   isFor(index, subject)   whether the report has it
//   entries(data)           for the search: [{ label, kind, text, path }]
//   Component({ data, parts, subject, report, go, link })
import { compareView } from "./compare.js";
import { kernelView } from "./kernel.js";
import { mapView } from "./map.js";
import { passesView } from "./passes.js";

export const views = [mapView, kernelView, passesView, compareView];
