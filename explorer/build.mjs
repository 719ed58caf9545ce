// Bundles the page of `moec explore`: src/ becomes moec/exploring/page/explorer.js and explorer.css.
// `node build.mjs OUT` writes them to another folder.
import { build } from "esbuild";

const folder = process.argv[2] ?? "../moec/exploring/page";

await build({
  absWorkingDir: import.meta.dirname,
  entryPoints: { explorer: "src/main.js" },
  outdir: folder,
  bundle: true,
  charset: "ascii",
  format: "iife",
  legalComments: "inline",
  minify: true,
  target: ["chrome120", "firefox120", "safari17"],
});
