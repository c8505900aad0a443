// npm's ws, driven by lines of JSON on standard input; what happens to it is told in lines of JSON on standard output.
import { createInterface } from "node:readline";
import { WebSocket } from "ws";

const tell = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);
let socket;

function connect({ url, protocols, headers }) {
  socket = new WebSocket(url, protocols, { headers });
  let connectionId = "";
  socket.on("upgrade", (response) => (connectionId = response.headers["sidecar-connection-id"] ?? ""));
  socket.on("open", () => tell({ opened: socket.protocol, connection_id: connectionId }));
  socket.on("unexpected-response", (_request, response) => tell({ refused: response.statusCode }));
  socket.on("message", (data, isBinary) =>
    tell(isBinary ? { binary: data.toString("base64") } : { text: data.toString() }),
  );
  socket.on("close", (code) => tell({ closed: code }));
  socket.on("error", () => {});
}

const commands = {
  connect,
  text: ({ text }) => socket.send(text),
  binary: ({ binary }) => socket.send(Buffer.from(binary, "base64")),
  close: ({ code }) => socket.close(code),
  lose: () => socket.terminate(),
};

createInterface({ input: process.stdin }).on("line", (line) => {
  const { command, ...members } = JSON.parse(line);
  commands[command](members);
});
