// The HTTP API of the coordinator.

/** The key of the admin token in the browser's session storage. */
const TOKEN_KEY = "dico-admin-token";
/** Milliseconds between attempts to open the stream of snapshots. */
const RETRY_INTERVAL_MS = 2000;

/**
 * The coordinator did not answer, or answered with an error. `status` is the HTTP status code, if
 * there is one.
 */
export class RequestError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(`api/${path}`, options);
  } catch (error) {
    throw new RequestError(error.message);
  }
  const body = await response.json().catch(() => null);
  if (!response.ok) throw new RequestError(body?.error ?? `the coordinator answered ${response.status}`, response.status);
  if (body === null) throw new RequestError("the coordinator's answer is incomplete", response.status);
  return body;
}

/** The JSON at a path below `api/`. */
export const get = (path) => request(path);

/**
 * Runs `action`. Returns whether the coordinator answered all its requests without an error. Throws
 * errors that are no `RequestError`, because they are bugs of the web page.
 */
export async function isAnswered(action) {
  try {
    await action();
    return true;
  } catch (error) {
    if (error instanceof RequestError) return false;
    throw error;
  }
}

/** The admin token. The browser keeps it until the tab is closed. */
export const adminToken = {
  get: () => sessionStorage.getItem(TOKEN_KEY),
  set: (value) => sessionStorage.setItem(TOKEN_KEY, value),
  remove: () => sessionStorage.removeItem(TOKEN_KEY),
};

/** Sends a command to the coordinator, for example "pause". Returns its answer. */
export async function sendCommand(name, body) {
  const headers = { authorization: `Bearer ${adminToken.get() ?? ""}` };
  if (body) headers["content-type"] = "application/json";
  return request(name, { method: "POST", headers, body: body && JSON.stringify(body) });
}

/**
 * Calls `onSnapshot` with each snapshot of the run, and `onDisconnect` whenever the connection
 * breaks.
 */
export function follow(onSnapshot, onDisconnect) {
  const source = new EventSource("api/stream");
  source.onmessage = (event) => onSnapshot(JSON.parse(event.data));
  source.onerror = () => {
    onDisconnect();
    // The browser reconnects by itself, unless the coordinator has refused the stream.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => follow(onSnapshot, onDisconnect), RETRY_INTERVAL_MS);
  };
}
