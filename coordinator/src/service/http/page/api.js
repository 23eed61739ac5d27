// What the coordinator is asked.

const KEY = "dico-admin-token";
const RETRY = 2000;

/** The coordinator did not answer, or answered with an error; `status` is that of HTTP, if there is one. */
export class Unanswered extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(`api/${path}`, options);
  } catch (error) {
    throw new Unanswered(error.message);
  }
  const body = await response.json().catch(() => null);
  if (!response.ok) throw new Unanswered(body?.error ?? `the coordinator answered ${response.status}`, response.status);
  if (body === null) throw new Unanswered("the coordinator's answer is incomplete", response.status);
  return body;
}

/** What is at a path below `api/`. */
export const get = (path) => ask(path);

/** Runs `act`; whether the coordinator answered. Other errors are faults of the page and go on. */
export async function answered(act) {
  try {
    await act();
    return true;
  } catch (error) {
    if (error instanceof Unanswered) return false;
    throw error;
  }
}

/** The admin token, for as long as this tab is open. */
export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** Sends a command. */
export async function command(name, body) {
  const headers = { authorization: `Bearer ${token.get() ?? ""}` };
  if (body) headers["content-type"] = "application/json";
  return ask(name, { method: "POST", headers, body: body && JSON.stringify(body) });
}

/** Tells of every look at the run, and of every time that the way to the coordinator is lost. */
export function follow(tell, lost) {
  const source = new EventSource("api/stream");
  source.onmessage = (event) => tell(JSON.parse(event.data));
  source.onerror = () => {
    lost();
    // The browser tries again by itself, unless it was turned away.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => follow(tell, lost), RETRY);
  };
}
