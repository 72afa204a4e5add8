// What both pages do first: offer to sign out, where there is something to sign out of.

import { get } from "./api.js";
import { byId } from "./dom.js";

export async function greet() {
  try {
    const session = await get(["session"]);
    byId("logout").hidden = !session.needs_token;
    return session;
  } catch {
    return null; // the page says by itself that the server is away
  }
}
