/**
 * Builds dist: the modules with their types, and one minified file for pages without a bundler. With --test the tests into
 * build/test besides, and the conformance runner into build/conformance, one for Node and one for a page. What is built
 * of the same sources already stays.
 */

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { minify } from "terser";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
process.chdir(root);

function compile(project) {
  execFileSync(process.execPath, [join("node_modules", "typescript", "bin", "tsc"), "-p", project], { stdio: "inherit" });
}

async function bundled(entry, options = {}) {
  const { outputFiles } = await build({
    entryPoints: [entry],
    bundle: true,
    format: "esm",
    target: "es2022",
    write: false,
    logLevel: "error",
    ...options,
  });
  return outputFiles[0].text;
}

async function buildClient() {
  rmSync("dist", { recursive: true, force: true });
  compile("tsconfig.json");
  // Twice: esbuild shortens private names, terser finds a few percent more.
  const { code } = await minify(await bundled("src/index.ts", { minify: true }), {
    module: true,
    ecma: 2022,
    compress: { passes: 3, pure_getters: true, unsafe_arrows: true },
  });
  writeFileSync(join("dist", "ws-sidecar.min.js"), code);
}

async function buildTests() {
  rmSync("build", { recursive: true, force: true });
  compile("test");
  const node = { platform: "node", banner: { js: NODE_BANNER } };
  writeFileSync("build/conformance/runner.mjs", await bundled("conformance/main.ts", node));
  writeFileSync("build/conformance/page.js", await bundled("conformance/page.ts"));
}

/** A digest of everything that goes into a build. */
function sources() {
  const hash = createHash("sha256");
  for (const place of ["package.json", "package-lock.json", "tsconfig.json", "src", "test", "conformance", "scripts"]) {
    const files = existsSync(place) && !place.includes(".") ? readdirSync(place).sort().map((name) => join(place, name)) : [place];
    for (const file of files) hash.update(file).update(existsSync(file) ? readFileSync(file) : "");
  }
  return hash.digest("hex");
}

async function unlessDone(stamp, work) {
  const now = sources();
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === now) return;
  await work();
  writeFileSync(stamp, now);
}

/** `ws` is CommonJS and asks for Node's own modules. */
const NODE_BANNER = 'import { createRequire } from "node:module"; const require = createRequire(import.meta.url);';

await unlessDone(join("dist", ".sources"), buildClient);
if (process.argv.includes("--test")) await unlessDone(join("build", ".sources"), buildTests);
