// What a conversion did and what it left, as a notice.
import { say } from "../messages.js";

export function told({ converted, driven, grouped, lost }) {
  const left = [
    driven && say("convertDriven", { count: driven }),
    grouped && say("convertGrouped", { count: grouped }),
    lost && say("convertLost", { count: lost }),
  ].filter(Boolean);
  return {
    severity: left.length ? "warn" : converted ? "success" : "info",
    summary: converted ? say("converted", { count: converted }) : say("noneConverted"),
    detail: left.join(" ") || undefined,
  };
}
