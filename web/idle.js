// When the page has nothing else to do; Safari cannot tell, and waits a moment.
export function idle() {
  const { requestIdleCallback } = window;
  return new Promise((done) =>
    requestIdleCallback ? requestIdleCallback(done, { timeout: 1000 }) : setTimeout(done, 20),
  );
}
