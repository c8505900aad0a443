// Generates src/generated from the contract in proto/; --check writes nothing and fails where a file differs.
//
// protoc is that of the project's pinned grpcio-tools, in .venv-proto (scripts/generate_proto.py builds it); the plug-in
// is ts-proto, pinned in package-lock.json. SIDECAR_PROTO_PYTHON names another interpreter that has grpcio-tools.
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";

const HERE = fileURLToPath(new URL("..", import.meta.url));
const ROOT = join(HERE, "..", "..");
const TARGET = join(HERE, "src", "generated");
const PLUGIN = join(HERE, "node_modules", ".bin", "protoc-gen-ts_proto");
const PYTHON = process.env.SIDECAR_PROTO_PYTHON ?? join(ROOT, ".venv-proto", "bin", "python");

/** What an agent's side speaks: no AdminService. */
const PROTOS = [
  ...["agent_service", "context_service", "delivery_service", "error_reason", "types"].map(
    (name) => `sidecar/api/v1/${name}.proto`,
  ),
  "google/rpc/error_details.proto",
  "google/rpc/status.proto",
];

const OPTIONS = [
  "annotateFilesWithVersion=false",
  "comments=false", // the contract's own are in proto/ and in docs/api.md
  "env=node",
  "esModuleInterop=true",
  "exportCommonSymbols=false",
  "forceLong=number", // sequences are at most 2^53 - 1; what is more is refused when it is read
  "importSuffix=.js",
  "oneof=unions-value",
  "outputJsonMethods=false",
  "outputPartialMethods=false",
  "outputServices=grpc-js",
  "unrecognizedEnum=false",
  "useDate=false",
  "useMapType=false",
];

/** The folder of the installed googleapis-common-protos: google/rpc/*.proto. */
function googleapis() {
  const program = "import google.rpc, os; print(os.path.dirname(os.path.dirname(list(google.rpc.__path__)[0])))";
  return execFileSync(PYTHON, ["-c", program], { encoding: "utf8" }).trim();
}

/** Generates everything below a folder of its own; returns the texts by name. */
function generate() {
  const folder = mkdtempSync(join(tmpdir(), "ws-sidecar-node-"));
  try {
    const include = [`-I${join(ROOT, "proto")}`, `-I${googleapis()}`];
    const plugin = [`--plugin=protoc-gen-ts_proto=${PLUGIN}`, `--ts_proto_out=${folder}`, `--ts_proto_opt=${OPTIONS.join(",")}`];
    execFileSync(PYTHON, ["-m", "grpc_tools.protoc", ...include, ...plugin, ...PROTOS], { stdio: "inherit" });
    return texts(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Every file below the folder: its text by its name there, sorted. */
function texts(folder) {
  const found = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  const names = found.map((entry) => relative(folder, join(entry.parentPath ?? entry.path, entry.name))).sort();
  return new Map(names.map((name) => [name.split(sep).join("/"), readFileSync(join(folder, name), "utf8")]));
}

function write(generated) {
  rmSync(TARGET, { recursive: true, force: true });
  for (const [name, text] of generated) {
    mkdirSync(dirname(join(TARGET, name)), { recursive: true });
    writeFileSync(join(TARGET, name), text);
  }
}

/** Names what differs; returns the exit code. */
function check(generated) {
  const present = texts(TARGET);
  const names = new Set([...generated.keys(), ...present.keys()]);
  const differing = [...names].filter((name) => generated.get(name) !== present.get(name));
  for (const name of differing) console.error(`not current: src/generated/${name}`);
  if (differing.length > 0) console.error("run: npm run generate");
  return differing.length > 0 ? 1 : 0;
}

const generated = generate();
if (process.argv.includes("--check")) process.exitCode = check(generated);
else write(generated);
