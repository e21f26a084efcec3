-- Measurements of each training picture, taken when it is uploaded; {} for a row made without the check.
alter table app.brand_assets add column features jsonb not null default '{}'
  check (jsonb_typeof(features) = 'object' and octet_length(features::text) <= 4000);
grant insert (features) on app.brand_assets to authenticated;
