export { SidecarClient } from "./client.js";
