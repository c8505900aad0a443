/**
 * Builds dist: the modules with their types, and one minified file for pages without a bundler. With --test the tests into
 * build/test besides, and the conformance runner into build/conformance, one for Node and one for a page.
 */

import { execFileSync } from "node:child_process";
import { rmSync, writeFileSync } from "node:fs";
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

rmSync("dist", { recursive: true, force: true });
compile("tsconfig.json");
// Twice: esbuild shortens private names, terser finds a few percent more.
const { code } = await minify(await bundled("src/index.ts", { minify: true }), {
  module: true,
  ecma: 2022,
  compress: { passes: 3, pure_getters: true, unsafe_arrows: true },
});
writeFileSync(join("dist", "ws-sidecar.min.js"), code);

if (process.argv.includes("--test")) {
  rmSync("build", { recursive: true, force: true });
  compile("test");
  const runner = { "build/conformance/runner.mjs": "node", "build/conformance/page.js": "browser" };
  for (const [file, platform] of Object.entries(runner)) {
    const entry = platform === "node" ? "conformance/main.ts" : "conformance/page.ts";
    const banner = platform === "node" ? { js: NODE_BANNER() } : {};
    writeFileSync(file, await bundled(entry, { platform, banner }));
  }
}

/** `ws` is CommonJS and asks for Node's own modules. */
function NODE_BANNER() {
  return 'import { createRequire } from "node:module"; const require = createRequire(import.meta.url);';
}
