// What a conversion did and what it left, as a notice.

export function told({ converted, driven, grouped, lost }) {
  const nodes = counted(converted, "LoRA node");
  const left = [
    driven &&
      `${counted(driven, "node")} stay: a link or the node of a subgraph sets their values. Put the values into the node and convert again.`,
    grouped &&
      `${counted(grouped, "group node")} with LoRAs stay: turn a group into a subgraph and convert again.`,
    lost && `${counted(lost, "link")} to texts of other packs are gone.`,
  ].filter(Boolean);
  return {
    severity: left.length ? "warn" : converted ? "success" : "info",
    summary: converted ? `${nodes} converted` : "No LoRA nodes of other packs were converted",
    detail: left.join(" ") || undefined,
  };
}

function counted(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}
